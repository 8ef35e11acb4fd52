// Memory that outlives a call: scratch of each thread, and blocks that hold kept factors.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace optlayer {

inline void* aligned_new(size_t bytes) {
#if defined(_WIN32)
    void* data = _aligned_malloc(bytes, 64);
#else
    void* data = nullptr;
    if (posix_memalign(&data, 64, bytes)) data = nullptr;
#endif
    if (!data) throw std::bad_alloc();
    return data;
}
inline void aligned_delete(void* data) {
#if defined(_WIN32)
    _aligned_free(data);
#else
    std::free(data);
#endif
}

// Grows, and is kept from call to call.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { aligned_delete(data_); }
    void* reserve(size_t bytes) {
        if (bytes > size_ || !data_) {
            aligned_delete(data_);
            data_ = nullptr, size_ = 0;
            const size_t size = (bytes + 4096) / 4096 * 4096;
            data_ = aligned_new(size), size_ = size;
        }
        return data_;
    }
    void swap(Scratch& other) { std::swap(data_, other.data_), std::swap(size_, other.size_); }

  private:
    void* data_ = nullptr;
    size_t size_ = 0;
};
inline Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}
inline Scratch& prepared() {
    static thread_local Scratch s;
    return s;
}
// While it lives, a call within a call has memory of its own.
class OwnScratch {
  public:
    OwnScratch() { exchange(); }
    OwnScratch(const OwnScratch&) = delete;
    ~OwnScratch() { exchange(); }

  private:
    void exchange() { scratch().swap(scratch_), prepared().swap(prepared_); }
    Scratch scratch_, prepared_;
};

// Blocks for kept factors and large gradients. A training loop frees one and asks for the next of the same size: the
// last ones are kept, because fresh pages cost more than the arithmetic that fills them.
class Blocks {
  public:
    static void* take(size_t bytes, int64_t& size) {
        Blocks& b = instance();
        bytes = (bytes + 4095) / 4096 * 4096;
        void* found = nullptr;
        {
            std::lock_guard<std::mutex> hold(b.mutex_);
            auto best = b.free_.end();
            for (auto f = b.free_.begin(); f != b.free_.end(); ++f)
                if (f->size >= bytes && f->size <= 2 * bytes && (best == b.free_.end() || f->size < best->size)) best = f;
            if (best != b.free_.end()) found = best->data, bytes = best->size, b.total_ -= bytes, b.free_.erase(best);
        }
        if (!found) found = static_cast<char*>(aligned_new(bytes + head)) + head;
        start(found)[0] = bytes;
        size = int64_t(bytes);
        return found;
    }
    static void give(void* data) {
        Blocks& b = instance();
        const size_t bytes = start(data)[0];
        std::vector<Free> gone;
        if (bytes > most) gone.push_back({data, bytes});
        else {
            std::lock_guard<std::mutex> hold(b.mutex_);
            b.free_.push_back({data, bytes}), b.total_ += bytes;
            while (b.total_ > most || b.free_.size() > count)
                b.total_ -= b.free_[0].size, gone.push_back(b.free_[0]), b.free_.erase(b.free_.begin());
        }
        for (const Free& f : gone) aligned_delete(start(f.data));
    }

  private:
    struct Free {
        void* data;
        size_t size;
    };
    static constexpr size_t head = 64, most = size_t(256) << 20, count = 16;
    static size_t* start(void* data) { return reinterpret_cast<size_t*>(static_cast<char*>(data) - head); }
    static Blocks& instance() {
        static Blocks* blocks = new Blocks;  // never destroyed: factors may be freed while the process ends
        return *blocks;
    }
    std::mutex mutex_;
    std::vector<Free> free_;  // oldest first
    size_t total_ = 0;
};

}  // namespace optlayer
