// The launches that backends/cuda.py makes, emulated (emulator.h): with one team, which takes all members in turn.
#pragma once
#include <vector>

#include "emulator.h"
#include "kernels/device.h"
#include "room.h"

extern "C" void optlayer_device_plan(const optlayer::Args* g, const optlayer::DeviceLimits* limits, optlayer::DevicePlan* d);

namespace optlayer {

template <class T, int threads> class Launches {
  public:
    // fast: bytes of shared memory. Where a factor is kept, g gets it.
    Launches(Args& g, int64_t fast) : g_(g) {
        d_.threads = threads;
        const DeviceLimits limits{fast, 2 * fast, 4, 2, machine::warp, 0};
        optlayer_device_plan(&g, &limits, &d_);
        factor_.reserve(size_t(d_.factor_bytes)), shared_.reserve(size_t(d_.shared_bytes));
        scratch_.reserve(size_t(d_.slow_bytes > d_.prepare_bytes ? d_.slow_bytes : d_.prepare_bytes));
        g.factor.data = d_.keep ? factor_.at() : nullptr, d_.scratch = scratch_.at();
        if (d_.shared_bytes) d_.shared_block = d_.keep ? factor_.at() + d_.flags_bytes(g) : shared_.at();
        if (d_.shared_bytes) by_team<threads == 1 ? 2 * machine::warp : threads>([&](auto& task) { task.prepare(d_.scratch); });
    }
    void solve() {
        by_team<threads>([&](auto& task) { for (int64_t k = 0; k < g_.batch; ++k) task.solve(k); });
    }
    void adjoint() {
        by_team<threads>([&](auto& task) { for (int64_t k = 0; k < g_.batch; ++k) task.adjoint(k); });
    }

  private:
    const Args& g_;
    DevicePlan d_{};
    Room factor_, shared_, scratch_;

    template <int team_threads, class F> void by_team(const F& f) {
        Room fast;
        fast.reserve(size_t(d_.fast_bytes));
        if constexpr (team_threads == 1) {
            Task<T, Thread<T>> task{g_, d_, {}, fast.at(), scratch_.at()};
            f(task);
        } else {
            using Team = Block<T, team_threads>;
            std::vector<T> room(Team::room);
            emulate(team_threads, [&] {
                Team team;
                team.shared = room.data();
                Task<T, Team> task{g_, d_, team, fast.at(), scratch_.at()};
                f(task);
            });
        }
    }
};

}  // namespace optlayer
