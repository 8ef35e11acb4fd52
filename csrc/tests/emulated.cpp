// The kernels of entry.cu as a library: a backend that runs them on the CPU, where tests ask it for verdicts
// (tests/test_emulated.py). The team of one thread, or a block whose threads are the operating system's (emulator.h).
#include "launches.h"

using namespace optlayer;

template <class T, int threads> static void run(Args& g, bool adjoint) {
    Launches<T, threads> launches(g, 1 << 20);
    adjoint ? launches.adjoint() : launches.solve();
}

// No factor is kept: g->keep is 0.
extern "C" void optlayer_emulate(Args* g, int threads, bool adjoint) {
    if (threads == 1) g->single ? run<float, 1>(*g, adjoint) : run<double, 1>(*g, adjoint);
    else g->single ? run<float, 16>(*g, adjoint) : run<double, 16>(*g, adjoint);
}
