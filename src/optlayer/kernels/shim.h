// The few names of the standard library that the kernels use, for NVRTC, which compiles from memory and has none.
// Everything NVRTC compiles is device code (-default-device).
#pragma once
#ifdef __CUDACC_RTC__
#define OPTLAYER_CALL __noinline__  // on a GPU a routine that is called, not repeated wherever it is used
#define OPTLAYER_ROLLED _Pragma("unroll 1")
#else
#define OPTLAYER_CALL
#define OPTLAYER_ROLLED
#endif

#ifndef __CUDACC_RTC__
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#else
using int32_t = int;
using int64_t = long long;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;

namespace std {
using ::int32_t;
using ::int64_t;
using ptrdiff_t = long long;
template <class T, T v> struct integral_constant {
    static constexpr T value = v;
    constexpr operator T() const { return v; }
};
template <class A, class B> struct is_same : integral_constant<bool, false> {};
template <class A> struct is_same<A, A> : integral_constant<bool, true> {};
template <class T> struct is_floating_point : integral_constant<bool, false> {};
template <> struct is_floating_point<float> : integral_constant<bool, true> {};
template <> struct is_floating_point<double> : integral_constant<bool, true> {};
template <bool, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool c, class T = void> using enable_if_t = typename enable_if<c, T>::type;
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return ::fma(a, b, c); }
inline float sqrt(float a) { return ::sqrtf(a); }
inline double sqrt(double a) { return ::sqrt(a); }
inline float fabs(float a) { return ::fabsf(a); }
inline double fabs(double a) { return ::fabs(a); }
}  // namespace std
#endif
