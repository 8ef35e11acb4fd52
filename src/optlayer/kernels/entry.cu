// The kernels. Compiled by NVRTC for one type and one team at a time (backends/nvrtc.py):
//   OPTLAYER_T        float or double
//   OPTLAYER_THREADS  threads to a QP: 1, a warp, or a block
//   OPTLAYER_TEAMS    QPs to a block of threads
//   OPTLAYER_RESIDENT blocks to a multiprocessor that registers must allow
//   OPTLAYER_LOCAL    bytes of a single thread's own memory
//   OPTLAYER_SCHUR    whether the Schur elimination is wanted
//   OPTLAYER_ENTRY    0: optlayer_solve, 1: optlayer_kkt_solve, 2: optlayer_prepare; one at a time compiles sooner
#include "block.h"
#include "device.h"

using namespace optlayer;
using T = OPTLAYER_T;
constexpr int threads = OPTLAYER_THREADS, teams = OPTLAYER_TEAMS;

#if OPTLAYER_ENTRY == 2  // what the batch shares, by one block; `scratch` is its room
extern "C" __global__ void __launch_bounds__(threads)
optlayer_prepare(const __grid_constant__ Args g, const __grid_constant__ DevicePlan d) {
    using Team = Block<T, threads>;
    __shared__ T room[Team::room];
    Team team;
    team.shared = room;
    Task<T, Team> task{g, d, team, nullptr, static_cast<char*>(d.scratch)};
    task.prepare(d.scratch);
}
#else
// Every team takes members in turn, so that scratch is bounded by the number of teams.
template <class F> inline void each_member(const Args& g, const DevicePlan& d, const F& f) {
    const int64_t count = int64_t(gridDim.x) * teams;
    const int64_t first = int64_t(blockIdx.x) * teams + threadIdx.x / threads;
    char* slow = static_cast<char*>(d.scratch) + first * d.slow_bytes;
#if OPTLAYER_THREADS == 1
    // Local memory: the hardware interleaves the words of neighbouring threads, so that equal steps are one access.
    __align__(16) char own[OPTLAYER_LOCAL];
    Task<T, Thread<T>> task{g, d, {}, own, slow};
#else
    extern __shared__ __align__(16) char memory[];
    using Team = Block<T, threads>;
    constexpr size_t room = (Team::room * sizeof(T) + 15) / 16 * 16;
    char* mine = memory + (threadIdx.x / threads) * (room + d.fast_bytes);
    Team team;
    team.shared = reinterpret_cast<T*>(mine);
    Task<T, Team> task{g, d, team, mine + room, slow};
#endif
    for (int64_t k = first; k < g.batch; k += count) f(task, k);
}

#if OPTLAYER_ENTRY == 0
extern "C" __global__ void __launch_bounds__(threads * teams, OPTLAYER_RESIDENT)
optlayer_solve(const __grid_constant__ Args g, const __grid_constant__ DevicePlan d) {
    each_member(g, d, [](auto& task, int64_t k) { task.solve(k); });
}
#else
extern "C" __global__ void __launch_bounds__(threads * teams, OPTLAYER_RESIDENT)
optlayer_kkt_solve(const __grid_constant__ Args g, const __grid_constant__ DevicePlan d) {
    each_member(g, d, [](auto& task, int64_t k) { task.adjoint(k); });
}
#endif
#endif
