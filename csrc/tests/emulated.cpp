// The kernels of entry.cu as a library: a backend that runs them on the CPU, where tests ask it for verdicts
// (tests/test_emulated.py). The team of one thread, or a block whose threads are the operating system's (emulator.h).
#include <cstring>
#include <vector>

#include "emulator.h"
#include "kernels/device.h"

using namespace optlayer;

extern "C" void optlayer_device_plan(const Args* g, const DeviceLimits* limits, DevicePlan* d);

namespace {

using Room = std::vector<double>;  // (aligned as every number asks)
Room room(size_t bytes) { return Room((bytes + 15) / 8 + 2); }
char* at(Room& x) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(x.data()) + 15) / 16 * 16); }

template <class T, int threads, class F> void with_task(const Args& g, const DevicePlan& d, char* slow, const F& f) {
    Room fast = room(size_t(d.fast_bytes));
    if constexpr (threads == 1) {
        Task<T, Thread<T>> task{g, d, {}, at(fast), slow};
        f(task);
    } else {
        std::vector<T> shared(Block<T, threads>::room);
        emulate(threads, [&] {
            Block<T, threads> team;
            team.shared = shared.data();
            Task<T, Block<T, threads>> task{g, d, team, at(fast), slow};
            f(task);
        });
    }
}

template <class T, int threads> void run(const Args& g, bool adjoint) {
    DevicePlan d{};
    d.threads = threads;
    const DeviceLimits limits{1 << 20, 1 << 21, 4, 2, machine::warp, 0};
    optlayer_device_plan(&g, &limits, &d);
    Room scratch = room(size_t(d.slow_bytes > d.prepare_bytes ? d.slow_bytes : d.prepare_bytes)), shared = room(size_t(d.shared_bytes));
    d.scratch = at(scratch), d.shared_block = d.shared_bytes ? at(shared) : nullptr;
    if (d.shared_bytes) with_task<T, threads == 1 ? machine::warp : threads>(g, d, at(scratch), [&](auto& task) { task.prepare(d.scratch); });
    with_task<T, threads>(g, d, at(scratch), [&](auto& task) {
        for (int64_t k = 0; k < g.batch; ++k) adjoint ? task.adjoint(k) : task.solve(k);
    });
}

}  // namespace

// No factor is kept: g.keep is 0.
extern "C" void optlayer_emulate(const Args* g, int threads, bool adjoint) {
    if (threads == 1) g->single ? run<float, 1>(*g, adjoint) : run<double, 1>(*g, adjoint);
    else g->single ? run<float, 16>(*g, adjoint) : run<double, 16>(*g, adjoint);
}
