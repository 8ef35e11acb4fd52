// A block of threads of a GPU on a CPU: real threads, real barriers, warps of 8. The thread sanitizer finds races, the
// address sanitizer accesses out of bounds, in the very code that the GPU runs.
#pragma once
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/block.h"

namespace optlayer {

class Barrier {  // sense-reversing; gives way while it waits, since threads outnumber the cores
  public:
    explicit Barrier(int count) : count_(count), left_(count) {}
    void wait() {
        const int turn = turn_.load(std::memory_order_relaxed);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            left_.store(count_, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
        } else {
            while (turn_.load(std::memory_order_acquire) == turn) std::this_thread::yield();
        }
    }

  private:
    const int count_;
    std::atomic<int> left_, turn_{0};
};

// Runs body() on `threads` threads, each of which is a thread of one block.
template <class Body> void emulate(int threads, const Body& body) {
    constexpr int warp = machine::warp;
    struct Warp {
        Barrier barrier{warp};
        double values[warp];
    };
    Barrier block(threads);
    std::vector<std::unique_ptr<Warp>> warps;
    for (int w = 0; w < threads / warp; ++w) warps.emplace_back(new Warp);

    struct Thread final : machine::Emulator {
        int rank;
        Barrier* block;
        Warp* mine;
        int thread() const override { return rank; }
        void sync_warp() override { mine->barrier.wait(); }
        void sync_block() override { block->wait(); }
        double shuffle(double x, int from) override {
            mine->values[rank % warp] = x;
            mine->barrier.wait();
            const double got = mine->values[from];
            mine->barrier.wait();
            return got;
        }
    };
    std::vector<std::thread> running;
    for (int r = 0; r < threads; ++r)
        running.emplace_back([&, r] {
            Thread self;
            self.rank = r, self.block = &block, self.mine = warps[size_t(r / warp)].get();
            machine::emulator = &self;
            body();
            machine::emulator = nullptr;
        });
    for (auto& thread : running) thread.join();
}

}  // namespace optlayer
