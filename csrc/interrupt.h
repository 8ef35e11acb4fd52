// Ctrl-C during a long call. Python's own handler only runs when the call has returned, so the call watches for the signal
// itself, hands it on, and returns early; who called it (backends/cpu.py) then lets Python see the signal.
#pragma once
#include <algorithm>
#include <atomic>
#include <csignal>
#include <exception>

#include "memory.h"
#include "pool.h"

namespace optlayer {

struct Interrupted : std::exception {};

class Interruptible {
  public:
    // A call of less work than `worth` is over before anybody could mind.
    explicit Interruptible(double microseconds) {
#if !defined(_WIN32)
        if (microseconds < worth || watching().exchange(true)) return;
        mine_ = true, asked_flag() = 0;
        struct sigaction now {};
        now.sa_handler = &notice;
        sigemptyset(&now.sa_mask);
        sigaction(SIGINT, &now, &before());
#else
        (void)microseconds;
#endif
    }
    ~Interruptible() {
#if !defined(_WIN32)
        if (!mine_) return;
        sigaction(SIGINT, &before(), nullptr);
        watching() = false;
        if (asked_flag() && before().sa_handler == SIG_DFL) raise(SIGINT);
#endif
    }
    Interruptible(const Interruptible&) = delete;
    bool asked() const { return mine_ && asked_flag(); }
    // What throws Interrupted once this has been asked to end; nullptr: it does not watch.
    auto pause() const -> void (*)() {
        if (!mine_) return nullptr;
        return [] {
            if (asked_flag()) throw Interrupted();
        };
    }

  private:
    static constexpr double worth = 1000;
    bool mine_ = false;

    static std::atomic<bool>& watching() {
        static std::atomic<bool> flag{false};
        return flag;
    }
    static volatile std::sig_atomic_t& asked_flag() {
        static volatile std::sig_atomic_t flag = 0;
        return flag;
    }
#if !defined(_WIN32)
    static struct sigaction& before() {
        static struct sigaction action {};
        return action;
    }
    static void notice(int signal) {
        asked_flag() = 1;
        const auto handler = before().sa_handler;
        if (handler != SIG_DFL && handler != SIG_IGN) handler(signal);
    }
#endif
};

// body(i, scratch) for all i < count, by `workers` threads that take `chunk` of them at a time, until Ctrl-C.
template <class F>
void over_threads(int workers, int64_t count, int64_t chunk, size_t room, const Interruptible& watch, const F& body) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    Pool::run(workers, [&](int) {
        try {
            char* work = static_cast<char*>(scratch().reserve(room));
            for (int64_t from; !watch.asked() && (from = next.fetch_add(chunk)) < count;)
                for (int64_t i = from; !watch.asked() && i < std::min(from + chunk, count); ++i) body(i, work);
        } catch (const Interrupted&) {
        } catch (...) {  // (the only other one is bad_alloc)
            failed = true;
        }
    });
    if (failed) throw std::bad_alloc();
    if (watch.asked()) throw Interrupted();
}

}  // namespace optlayer
