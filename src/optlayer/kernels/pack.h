// One SIMD value of W lanes, each lane another QP; and the same functions for plain scalars, so that an algorithm
// is written once over a value type V in {float, double, Pack<float, W>, Pack<double, W>}.
//
// Every function rounds a lane exactly as it rounds a scalar: a QP solved in a lane and alone gives the same bits.
// That needs -ffp-contract=off: products are fused where `fma` is written, and nowhere else.
#pragma once
#include "shim.h"
#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__CUDACC_RTC__)
#define OPTLAYER_INLINE __forceinline__
#define OPTLAYER_NOINLINE
#define OPTLAYER_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)  // gcc and clang
#define OPTLAYER_VECTORS 1
#define OPTLAYER_INLINE inline __attribute__((always_inline))
#define OPTLAYER_NOINLINE __attribute__((noinline))
#define OPTLAYER_UNROLL _Pragma("GCC unroll 32")
#else
#define OPTLAYER_INLINE __forceinline
#define OPTLAYER_NOINLINE __declspec(noinline)
#define OPTLAYER_UNROLL
#endif
#if defined(__FMA__) || defined(__aarch64__) || defined(__CUDACC_RTC__) || (defined(_MSC_VER) && defined(__AVX2__))
#define OPTLAYER_FMA 1  // the processor fuses; otherwise fma rounds twice (a library call would be 20 times slower)
#endif

namespace optlayer {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, vector_registers = 32;
#elif defined(__CUDACC_RTC__)
constexpr int vector_bytes = 0, vector_registers = 16;  // a thread has scalars
#else
constexpr int vector_bytes = 16, vector_registers = 16;
#endif
template <class T> constexpr int native_width = vector_bytes < int(sizeof(T)) ? 1 : vector_bytes / int(sizeof(T));

// ---- scalars -------------------------------------------------------------------------------------------------------

template <class T> using if_scalar = std::enable_if_t<std::is_floating_point<T>::value, T>;

template <class T> OPTLAYER_INLINE if_scalar<T> fma(T a, T b, T c) {  // a b + c
#ifdef OPTLAYER_FMA
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}
template <class T> OPTLAYER_INLINE if_scalar<T> fnma(T a, T b, T c) { return fma(-a, b, c); }  // c - a b
template <class T> OPTLAYER_INLINE if_scalar<T> sqrt(T a) { return std::sqrt(a); }
template <class T> OPTLAYER_INLINE if_scalar<T> abs(T a) { return std::fabs(a); }
template <class T> OPTLAYER_INLINE if_scalar<T> min(T a, T b) { return a < b ? a : b; }  // b if either is NaN
template <class T> OPTLAYER_INLINE if_scalar<T> max(T a, T b) { return a > b ? a : b; }
template <class T> OPTLAYER_INLINE if_scalar<T> select(bool mask, T a, T b) { return mask ? a : b; }
OPTLAYER_INLINE bool any(bool mask) { return mask; }
OPTLAYER_INLINE bool all(bool mask) { return mask; }
OPTLAYER_INLINE bool lane(bool mask, int) { return mask; }
template <class T> OPTLAYER_INLINE if_scalar<T> lane(T a, int) { return a; }
template <class T> OPTLAYER_INLINE std::enable_if_t<std::is_floating_point<T>::value> set_lane(T& a, int, T value) {
    a = value;
}

// ---- packs ---------------------------------------------------------------------------------------------------------

namespace detail {
template <int bytes> struct IntegerOf;
template <> struct IntegerOf<4> { using type = std::int32_t; };
template <> struct IntegerOf<8> { using type = std::int64_t; };

#ifdef OPTLAYER_VECTORS
template <class T, int W> struct Vector {
    typedef T type __attribute__((vector_size(W * sizeof(T))));
};
#else
template <class T, int W> struct Array {  // what a compiler without vector types gets; loops that it may vectorise
    T at[W];
    T& operator[](int i) { return at[i]; }
    T operator[](int i) const { return at[i]; }
};
template <class T, int W> struct Vector { using type = Array<T, W>; };
#define OPTLAYER_ARRAY_OPERATOR(op)                                                                          \
    template <class T, int W> OPTLAYER_INLINE Array<T, W> operator op(Array<T, W> a, Array<T, W> b) {        \
        for (int i = 0; i < W; ++i) a[i] = a[i] op b[i];                                                     \
        return a;                                                                                            \
    }
OPTLAYER_ARRAY_OPERATOR(+)
OPTLAYER_ARRAY_OPERATOR(-)
OPTLAYER_ARRAY_OPERATOR(*)
OPTLAYER_ARRAY_OPERATOR(/)
OPTLAYER_ARRAY_OPERATOR(&)
OPTLAYER_ARRAY_OPERATOR(|)
#undef OPTLAYER_ARRAY_OPERATOR
template <class T, int W> OPTLAYER_INLINE Array<T, W> operator-(Array<T, W> a) {
    for (int i = 0; i < W; ++i) a[i] = -a[i];
    return a;
}
template <class T, int W> OPTLAYER_INLINE Array<T, W> operator~(Array<T, W> a) {
    for (int i = 0; i < W; ++i) a[i] = ~a[i];
    return a;
}
#define OPTLAYER_ARRAY_COMPARISON(op)                                                                        \
    template <class T, int W> OPTLAYER_INLINE auto operator op(Array<T, W> a, Array<T, W> b) {               \
        Array<typename IntegerOf<sizeof(T)>::type, W> m;                                                     \
        for (int i = 0; i < W; ++i) m[i] = a[i] op b[i] ? -1 : 0;                                            \
        return m;                                                                                            \
    }
OPTLAYER_ARRAY_COMPARISON(<)
OPTLAYER_ARRAY_COMPARISON(<=)
OPTLAYER_ARRAY_COMPARISON(>)
OPTLAYER_ARRAY_COMPARISON(>=)
OPTLAYER_ARRAY_COMPARISON(==)
OPTLAYER_ARRAY_COMPARISON(!=)
#undef OPTLAYER_ARRAY_COMPARISON
#endif
}  // namespace detail

// True or false in each lane (all bits set, or none).
template <class T, int W> struct Mask {
    using Bits = typename detail::IntegerOf<sizeof(T)>::type;
    using Vector = typename detail::Vector<Bits, W>::type;
    Vector v;

    Mask() = default;
    OPTLAYER_INLINE Mask(Vector vector) : v(vector) {}
    OPTLAYER_INLINE Mask(bool value) {
#ifdef OPTLAYER_VECTORS
        v = Vector{} - Bits(value);
#else
        for (int i = 0; i < W; ++i) v[i] = value ? -1 : 0;
#endif
    }
    friend OPTLAYER_INLINE Mask operator&(Mask a, Mask b) { return Mask(a.v & b.v); }
    friend OPTLAYER_INLINE Mask operator|(Mask a, Mask b) { return Mask(a.v | b.v); }
    friend OPTLAYER_INLINE Mask operator&&(Mask a, Mask b) { return Mask(a.v & b.v); }
    friend OPTLAYER_INLINE Mask operator||(Mask a, Mask b) { return Mask(a.v | b.v); }
    friend OPTLAYER_INLINE Mask operator!(Mask a) { return Mask(~a.v); }
    OPTLAYER_INLINE Mask& operator&=(Mask b) { return *this = *this & b; }
    OPTLAYER_INLINE Mask& operator|=(Mask b) { return *this = *this | b; }
    friend OPTLAYER_INLINE bool any(Mask a) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64) return _mm512_test_epi32_mask((__m512i)a.v, (__m512i)a.v) != 0;
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(Vector) == 32) return !_mm256_testz_si256((__m256i)a.v, (__m256i)a.v);
#endif
        Bits bits = 0;
        for (int i = 0; i < W; ++i) bits |= a.v[i];
        return bits != 0;
    }
    friend OPTLAYER_INLINE bool all(Mask a) { return !any(!a); }
    friend OPTLAYER_INLINE bool lane(Mask a, int i) { return a.v[i] != 0; }
    friend OPTLAYER_INLINE void set_lane(Mask& a, int i, bool value) { a.v[i] = value ? -1 : 0; }
};

template <class T, int W> struct Pack {
    using Scalar = T;
    using Vector = typename detail::Vector<T, W>::type;
    using M = Mask<T, W>;
    static constexpr int width = W;
    Vector v;

    Pack() = default;
    OPTLAYER_INLINE explicit Pack(Vector vector) : v(vector) {}
#ifdef OPTLAYER_VECTORS
    OPTLAYER_INLINE Pack(T value) : v(value - Vector{}) {}  // in each lane; x - 0 keeps every bit of x, also of -0
    static OPTLAYER_INLINE Pack load(const T* p) { return Pack(*reinterpret_cast<const Unaligned*>(p)); }
    OPTLAYER_INLINE void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
#else
    OPTLAYER_INLINE Pack(T value) {
        for (int i = 0; i < W; ++i) v[i] = value;
    }
    static OPTLAYER_INLINE Pack load(const T* p) { return load_first(p, W); }
    OPTLAYER_INLINE void store(T* p) const { store_first(p, W); }
#endif
    // The first `count` lanes from memory, 0 in the others; memory behind them is not touched.
    static OPTLAYER_INLINE Pack load_first(const T* p, int count) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8)
            return Pack((Vector)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p));
        else if constexpr (sizeof(Vector) == 64)
            return Pack((Vector)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p));
        else
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(Vector) == 32 && sizeof(T) == 8)
            return Pack((Vector)_mm256_maskload_pd(p, first_lanes(count)));
        else if constexpr (sizeof(Vector) == 32)
            return Pack((Vector)_mm256_maskload_ps(p, first_lanes(count)));
        else
#endif
        {
            Pack a(T(0));
            for (int i = 0; i < count; ++i) a.v[i] = p[i];
            return a;
        }
    }
    // The same of numbers in single precision, in double.
    template <class S, class = std::enable_if_t<std::is_same<S, float>::value && !std::is_same<S, T>::value>>
    static OPTLAYER_INLINE Pack load(const S* p) {
#ifdef OPTLAYER_VECTORS
        typedef S Narrow __attribute__((vector_size(W * sizeof(S)), aligned(alignof(S)), may_alias));
        return Pack(__builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Vector));
#else
        return load_first(p, W);
#endif
    }
    template <class S, class = std::enable_if_t<std::is_same<S, float>::value && !std::is_same<S, T>::value>>
    static OPTLAYER_INLINE Pack load_first(const S* p, int count) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64) return Pack((Vector)_mm512_maskz_cvtps_pd(0xff, _mm256_maskz_loadu_ps(__mmask8((1u << count) - 1), p)));
#endif
        Pack a(T(0));
        for (int i = 0; i < count; ++i) a.v[i] = T(p[i]);
        return a;
    }
    OPTLAYER_INLINE void store_first(T* p, int count) const {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8)
            return _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v);
        else if constexpr (sizeof(Vector) == 64)
            return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
        else
#endif
            for (int i = 0; i < count; ++i) p[i] = v[i];
    }
    // p[at[i]] in the first `count` lanes, 0 in the others.
    static OPTLAYER_INLINE Pack gather_first(const T* p, const int* at, int count) {
#if defined(__AVX512VL__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8) {
            const __mmask8 first = __mmask8((1u << count) - 1);
            return Pack((Vector)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), first, _mm256_maskz_loadu_epi32(first, at), p, 8));
        } else
#endif
        {
            Pack a(T(0));
            for (int i = 0; i < count; ++i) a.v[i] = p[at[i]];
            return a;
        }
    }
    OPTLAYER_INLINE T operator[](int i) const { return v[i]; }
    // The sum of the lanes: one half onto the other, until one is left.
    OPTLAYER_INLINE T folded() const {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8)
            return folded(_mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xf, (__m512d)v, 0), _mm512_maskz_extractf64x4_pd(0xf, (__m512d)v, 1)));
        else
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(Vector) == 32 && sizeof(T) == 8) return folded((__m256d)v);
        else
#endif
        {
            T part[W];
            for (int i = 0; i < W; ++i) part[i] = v[i];
            for (int half = W / 2; half; half /= 2)
                for (int i = 0; i < half; ++i) part[i] = part[i] + part[i + half];
            return part[0];
        }
    }

    friend OPTLAYER_INLINE Pack operator+(Pack a, Pack b) { return Pack(a.v + b.v); }
    friend OPTLAYER_INLINE Pack operator-(Pack a, Pack b) { return Pack(a.v - b.v); }
    friend OPTLAYER_INLINE Pack operator*(Pack a, Pack b) { return Pack(a.v * b.v); }
    friend OPTLAYER_INLINE Pack operator/(Pack a, Pack b) { return Pack(a.v / b.v); }
    friend OPTLAYER_INLINE Pack operator-(Pack a) { return Pack(-a.v); }
    OPTLAYER_INLINE Pack& operator+=(Pack b) { return *this = *this + b; }
    OPTLAYER_INLINE Pack& operator-=(Pack b) { return *this = *this - b; }
    OPTLAYER_INLINE Pack& operator*=(Pack b) { return *this = *this * b; }
    OPTLAYER_INLINE Pack& operator/=(Pack b) { return *this = *this / b; }

    friend OPTLAYER_INLINE M operator<(Pack a, Pack b) { return M(a.v < b.v); }
    friend OPTLAYER_INLINE M operator<=(Pack a, Pack b) { return M(a.v <= b.v); }
    friend OPTLAYER_INLINE M operator>(Pack a, Pack b) { return M(a.v > b.v); }
    friend OPTLAYER_INLINE M operator>=(Pack a, Pack b) { return M(a.v >= b.v); }
    friend OPTLAYER_INLINE M operator==(Pack a, Pack b) { return M(a.v == b.v); }
    friend OPTLAYER_INLINE M operator!=(Pack a, Pack b) { return M(a.v != b.v); }

    friend OPTLAYER_INLINE Pack select(M mask, Pack a, Pack b) {
#ifdef OPTLAYER_VECTORS
        return Pack(mask.v ? a.v : b.v);
#else
        for (int i = 0; i < W; ++i) a.v[i] = mask.v[i] ? a.v[i] : b.v[i];
        return a;
#endif
    }
    friend OPTLAYER_INLINE Pack min(Pack a, Pack b) { return select(a < b, a, b); }
    friend OPTLAYER_INLINE Pack max(Pack a, Pack b) { return select(a > b, a, b); }
    friend OPTLAYER_INLINE Pack abs(Pack a) {
#ifdef OPTLAYER_VECTORS
        return Pack((Vector)((typename M::Vector)a.v & ~((typename M::Vector)Pack(T(-0.0)).v)));
#else
        for (int i = 0; i < W; ++i) a.v[i] = std::fabs(a.v[i]);
        return a;
#endif
    }
    friend OPTLAYER_INLINE Pack fma(Pack a, Pack b, Pack c) { return Pack(fused(a.v, b.v, c.v)); }    // a b + c
    friend OPTLAYER_INLINE Pack fnma(Pack a, Pack b, Pack c) { return Pack(fused(-a.v, b.v, c.v)); }  // c - a b
    friend OPTLAYER_INLINE Pack sqrt(Pack a) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8) return Pack((Vector)_mm512_maskz_sqrt_pd(0xff, (__m512d)a.v));
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 4) return Pack((Vector)_mm512_maskz_sqrt_ps(0xffff, (__m512)a.v));
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(Vector) == 32 && sizeof(T) == 8) return Pack((Vector)_mm256_sqrt_pd((__m256d)a.v));
        if constexpr (sizeof(Vector) == 32 && sizeof(T) == 4) return Pack((Vector)_mm256_sqrt_ps((__m256)a.v));
#endif
        for (int i = 0; i < W; ++i) a.v[i] = std::sqrt(a.v[i]);
        return a;
    }
    friend OPTLAYER_INLINE T lane(Pack a, int i) { return a.v[i]; }
    friend OPTLAYER_INLINE void set_lane(Pack& a, int i, T value) { a.v[i] = value; }

  private:
#ifdef OPTLAYER_VECTORS
    typedef T Unaligned __attribute__((vector_size(W * sizeof(T)), aligned(alignof(T)), may_alias));
#endif
#if defined(__AVX2__)
    static OPTLAYER_INLINE T folded(__m256d x) {
        const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        return pair[0] + pair[1];
    }
    static OPTLAYER_INLINE __m256i first_lanes(int count) {
        if constexpr (sizeof(T) == 8) return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_set_epi64x(3, 2, 1, 0));
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    }
#endif
    static OPTLAYER_INLINE Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
        if constexpr (sizeof(Vector) == 64 && sizeof(T) == 8)
            return (Vector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
        else if constexpr (sizeof(Vector) == 64)
            return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
        else
#endif
#if defined(__FMA__) && defined(OPTLAYER_VECTORS)
        if constexpr (sizeof(Vector) == 32 && sizeof(T) == 8)
            return (Vector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
        else if constexpr (sizeof(Vector) == 32)
            return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
        else
#elif defined(__aarch64__)
        if constexpr (sizeof(Vector) == 16 && sizeof(T) == 8)
            return (Vector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
        else if constexpr (sizeof(Vector) == 16)
            return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
        else
#endif
#ifdef OPTLAYER_FMA
        {
            for (int i = 0; i < W; ++i) c[i] = std::fma(a[i], b[i], c[i]);
            return c;
        }
#else
        return a * b + c;
#endif
    }
};

// ---- what a value is made of ---------------------------------------------------------------------------------------

namespace detail {
template <class V> struct Parts { using Scalar = V; using Mask = bool; static constexpr int lanes = 1; };
template <class T, int W> struct Parts<Pack<T, W>> {
    using Scalar = T;
    using Mask = optlayer::Mask<T, W>;
    static constexpr int lanes = W;
};
}  // namespace detail
template <class V> using scalar_of = typename detail::Parts<V>::Scalar;
template <class V> using mask_of = typename detail::Parts<V>::Mask;
template <class V> constexpr int lanes_of = detail::Parts<V>::lanes;
template <class V> constexpr bool is_pack = lanes_of<V> > 1;
template <class V> constexpr bool in_rows = is_pack<V> || native_width<scalar_of<V>> == 1;  // a register holds one row

namespace detail {
// What a register holds of an array of V: one value, of each lane's QP, or several of one QP alone.
template <class V> struct Rows { using Unit = V; static constexpr int step = 1; };
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__aarch64__) || defined(__SSE2__)
template <> struct Rows<double> { using Unit = Pack<double, native_width<double>>; static constexpr int step = native_width<double>; };
#endif
// A register of rows: a full one, or its first `count`.
template <class Unit, bool full, class V> OPTLAYER_INLINE Unit load_rows(const V* p, int count) {
    if constexpr (std::is_same<Unit, V>::value) return *p;
    else if constexpr (full) return Unit::load(p);
    else return Unit::load_first(p, count);
}
template <bool full, class Unit, class V> OPTLAYER_INLINE void store_rows(Unit x, V* p, int count) {
    if constexpr (std::is_same<Unit, V>::value) *p = x;
    else if constexpr (full) x.store(p);
    else x.store_first(p, count);
}
}  // namespace detail

}  // namespace optlayer
