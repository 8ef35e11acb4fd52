// Threads that sleep between calls. A call that finds the pool busy (another Python thread) works alone;
// after fork() the child starts its own pool. Nobody spins.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace optlayer {

class Pool {
  public:
    // body(worker) runs once on each of `workers` threads, the caller among them.
    static void run(int workers, const std::function<void(int)>& body) {
        if (workers <= 1) return body(0);
        Pool& pool = instance();
        std::unique_lock<std::mutex> busy(pool.entry_, std::try_to_lock);
        if (!busy.owns_lock()) return body(0);
        pool.grow(workers - 1);
        {
            std::lock_guard<std::mutex> hold(pool.mutex_);
            pool.body_ = &body, pool.wanted_ = workers - 1, pool.running_ = workers - 1, ++pool.generation_;
        }
        pool.wake_.notify_all();
        body(0);
        std::unique_lock<std::mutex> hold(pool.mutex_);
        pool.done_.wait(hold, [&] { return pool.running_ == 0; });
        pool.body_ = nullptr;
    }

  private:
    static Pool& instance() {
        static std::mutex guard;
        static Pool* pool = nullptr;  // never destroyed: its threads sleep until the process ends
        static long owner = 0;
#if defined(_WIN32)
        const long me = 1;
#else
        const long me = long(getpid());
#endif
        if (owner != me) {
            std::lock_guard<std::mutex> hold(guard);
            if (owner != me) pool = new Pool, owner = me;
        }
        return *pool;
    }
    void grow(int threads) {
        for (int id = int(threads_.size()); id < threads; ++id) {
            threads_.emplace_back([this, id] { work(id); });
            threads_.back().detach();
        }
    }
    void work(int id) {
        uint64_t seen = 0;
        for (;;) {
            const std::function<void(int)>* body;
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return generation_ != seen; });
                seen = generation_;
                if (id >= wanted_) continue;
                body = body_;
            }
            (*body)(id + 1);
            std::lock_guard<std::mutex> hold(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex entry_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* body_ = nullptr;
    int wanted_ = 0, running_ = 0;
    uint64_t generation_ = 0;
};

}  // namespace optlayer
