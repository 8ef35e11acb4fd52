// What a team of threads asks of the machine: who am I, wait for the others, pass a value inside of a warp.
// On a GPU these are instructions; on a CPU csrc/tests/emulator.h runs the same code with threads of its own,
// a smaller warp, and real barriers, so that sanitizers find races without a GPU.
#pragma once
#include "shim.h"

namespace optlayer {
namespace machine {

#ifdef __CUDACC_RTC__
constexpr int warp = 32;
inline int thread() { return int(threadIdx.x); }
inline void sync_warp() { __syncwarp(); }
inline void sync_block() { __syncthreads(); }
template <class V> V shuffle(V x, int from) { return __shfl_sync(0xffffffffu, x, from); }
template <class V> V shuffle_xor(V x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
inline float rsqrt(float x) { return ::rsqrtf(x); }
inline double rsqrt(double x) { return ::rsqrt(x); }
#else
constexpr int warp = 8;
struct Emulator {
    virtual int thread() const = 0;
    virtual void sync_warp() = 0;
    virtual void sync_block() = 0;
    virtual double shuffle(double x, int from) = 0;
};
inline thread_local Emulator* emulator = nullptr;
inline int thread() { return emulator->thread(); }
inline void sync_warp() { emulator->sync_warp(); }
inline void sync_block() { emulator->sync_block(); }
template <class V> V shuffle(V x, int from) { return V(emulator->shuffle(double(x), from)); }
template <class V> V shuffle_xor(V x, int mask) { return shuffle(x, (thread() % warp) ^ mask); }
template <class V> V rsqrt(V x) { return V(1) / std::sqrt(x); }
#endif

}  // namespace machine
}  // namespace optlayer
