// Memory as it comes, for an Arena: nothing in it may be trusted.
#pragma once
#include <cstdint>
#include <vector>

namespace optlayer {

class Room {
  public:
    explicit Room(size_t size = 0) { reserve(size); }
    void reserve(size_t size) { bytes_.assign(size + 64, char(0x55)); }
    char* at() { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes_.data()) + 63) / 64 * 64); }

  private:
    std::vector<char> bytes_;
};

}  // namespace optlayer
