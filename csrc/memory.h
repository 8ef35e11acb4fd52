// Memory that outlives a call: scratch of each thread, and blocks that hold kept factors.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

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

// Blocks for kept factors and large gradients. A training loop frees one and asks for the next of the same size: a few
// are kept, because fresh pages cost more than the arithmetic that fills them.
class Blocks {
  public:
    static void* take(size_t bytes, int64_t& size) {
        Blocks& b = instance();
        bytes = (bytes + 4095) / 4096 * 4096;
        void* found = nullptr;
        {
            std::lock_guard<std::mutex> hold(b.mutex_);
            Free* best = nullptr;
            for (Free& f : b.free_)
                if (f.data && f.size >= bytes && f.size <= 2 * bytes && (!best || f.size < best->size)) best = &f;
            if (best) found = best->data, bytes = best->size, b.total_ -= bytes, *best = {};
        }
        if (!found) found = static_cast<char*>(aligned_new(bytes + head)) + head;
        reinterpret_cast<size_t*>(static_cast<char*>(found) - head)[0] = bytes;
        size = int64_t(bytes);
        return found;
    }
    static void give(void* data) {
        Blocks& b = instance();
        const size_t bytes = reinterpret_cast<size_t*>(static_cast<char*>(data) - head)[0];
        {
            std::lock_guard<std::mutex> hold(b.mutex_);
            if (b.total_ + bytes <= most)
                for (Free& f : b.free_)
                    if (!f.data) {
                        f = {data, bytes}, b.total_ += bytes;
                        return;
                    }
        }
        aligned_delete(static_cast<char*>(data) - head);
    }

  private:
    struct Free {
        void* data = nullptr;
        size_t size = 0;
    };
    static constexpr size_t head = 64, most = size_t(256) << 20;
    static Blocks& instance() {
        static Blocks* blocks = new Blocks;  // never destroyed: factors may be freed while the process ends
        return *blocks;
    }
    std::mutex mutex_;
    Free free_[16];
    size_t total_ = 0;
};

}  // namespace optlayer
