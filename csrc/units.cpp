#include "units.h"

#include <algorithm>
#include <cmath>

namespace optlayer {

// Conjugate gradients on the normal equations, with as many entries as an unknown is in for its preconditioner.
std::vector<int> natural_units(int count, const std::vector<Meeting>& meetings) {
    constexpr int most = 100;
    constexpr double close = 1e-9;  // of the right-hand side: far below the half that decides a rounding
    std::vector<double> u(count), left(count), step(count), image(count), weight(count);
    for (const Meeting& m : meetings) left[m.a] -= m.exponent, left[m.b] -= m.exponent, weight[m.a] += 1, weight[m.b] += 1;
    const auto dot = [&](const std::vector<double>& x, const std::vector<double>& y, bool weighted) {
        double sum = 0;
        for (int i = 0; i < count; ++i) sum += weighted && weight[i] > 0 ? x[i] * y[i] / weight[i] : weighted ? 0 : x[i] * y[i];
        return sum;
    };
    double size = dot(left, left, true);
    const double enough = close * close * size;
    for (int i = 0; i < count; ++i) step[i] = weight[i] > 0 ? left[i] / weight[i] : 0;
    for (int round = 0; round < most && size > enough; ++round) {
        image.assign(count, 0);
        for (const Meeting& m : meetings) image[m.a] += step[m.a] + step[m.b], image[m.b] += step[m.a] + step[m.b];
        const double along = size / dot(step, image, false);
        for (int i = 0; i < count; ++i) u[i] += along * step[i], left[i] -= along * image[i];
        const double before = size;
        size = dot(left, left, true);
        for (int i = 0; i < count; ++i) step[i] = (weight[i] > 0 ? left[i] / weight[i] : 0) + size / before * step[i];
    }
    std::vector<int> exponents(count);
    for (int i = 0; i < count; ++i) exponents[i] = int(std::lround(std::clamp(u[i], -500.0, 500.0)));
    return exponents;
}

}  // namespace optlayer
