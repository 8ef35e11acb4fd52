// A number as the unevaluated sum of two doubles, about 32 digits (Dekker 1971; Hida, Li, Bailey 2001): the precision of the
// last rung, in which problems that rounding spoils in double are ordinary ones.
#pragma once
#include "pack.h"

namespace optlayer {

struct Twofold {
    double high, low;  // |low| <= half a unit in the last place of high

    Twofold() = default;
    constexpr Twofold(double x) : high(x), low(0) {}
    constexpr Twofold(double h, double l) : high(h), low(l) {}
    explicit operator double() const { return high; }  // high is the sum rounded to nearest
    explicit operator float() const { return float(high); }

    // a + b and a b without error; |a| >= |b| in the quick sum
    static Twofold quick(double a, double b) {
        const double sum = a + b;
        return {sum, b - (sum - a)};
    }
    static Twofold sum(double a, double b) {
        const double sum = a + b, part = sum - a;
        return {sum, (a - (sum - part)) + (b - part)};
    }
    static Twofold product(double a, double b) {
        const double product = a * b;
        return {product, std::fma(a, b, -product)};
    }
    // (infinities and NaN have no low part, or it would spoil them)
    static Twofold whole(double high, double low) {
        const Twofold x = quick(high, low);
        return x.high - x.high == 0 ? x : Twofold(high);
    }

    friend Twofold operator+(Twofold a, Twofold b) {
        const Twofold h = sum(a.high, b.high), l = sum(a.low, b.low), part = quick(h.high, h.low + l.high);
        return whole(part.high, part.low + l.low);
    }
    friend Twofold operator-(Twofold a) { return {-a.high, -a.low}; }
    friend Twofold operator-(Twofold a, Twofold b) { return a + -b; }
    friend Twofold operator*(Twofold a, Twofold b) {
        const Twofold p = product(a.high, b.high);
        return whole(p.high, p.low + std::fma(a.high, b.low, a.low * b.high));
    }
    friend Twofold operator/(Twofold a, Twofold b) {
        const double first = a.high / b.high;
        if (!(first - first == 0)) return first;
        const Twofold left = a - b * Twofold(first);
        const double second = left.high / b.high;
        const Twofold rest = left - b * Twofold(second);
        const Twofold two = quick(first, second);
        return whole(two.high, two.low + rest.high / b.high);
    }
    Twofold& operator+=(Twofold b) { return *this = *this + b; }
    Twofold& operator-=(Twofold b) { return *this = *this - b; }
    Twofold& operator*=(Twofold b) { return *this = *this * b; }
    Twofold& operator/=(Twofold b) { return *this = *this / b; }

    friend bool operator<(Twofold a, Twofold b) { return a.high < b.high || (a.high == b.high && a.low < b.low); }
    friend bool operator>(Twofold a, Twofold b) { return b < a; }
    friend bool operator<=(Twofold a, Twofold b) { return a.high < b.high || (a.high == b.high && a.low <= b.low); }
    friend bool operator>=(Twofold a, Twofold b) { return b <= a; }
    friend bool operator==(Twofold a, Twofold b) { return a.high == b.high && a.low == b.low; }
    friend bool operator!=(Twofold a, Twofold b) { return !(a == b); }

    friend Twofold fma(Twofold a, Twofold b, Twofold c) { return a * b + c; }
    friend Twofold fnma(Twofold a, Twofold b, Twofold c) { return c - a * b; }
    friend Twofold abs(Twofold a) { return a.high < 0 ? -a : a; }
    friend Twofold min(Twofold a, Twofold b) { return a < b ? a : b; }
    friend Twofold max(Twofold a, Twofold b) { return a > b ? a : b; }
    friend Twofold select(bool mask, Twofold a, Twofold b) { return mask ? a : b; }
    friend Twofold sqrt(Twofold a) {
        const double root = std::sqrt(a.high);
        if (!(root > 0) || root - root != 0) return root;
        const Twofold left = a - product(root, root);  // Newton's step from a root of double precision
        return whole(root, left.high / (2 * root));
    }
    friend Twofold lane(Twofold a, int) { return a; }
    friend void set_lane(Twofold& a, int, Twofold value) { a = value; }
};

template <> constexpr int native_width<Twofold> = 1;

}  // namespace optlayer
