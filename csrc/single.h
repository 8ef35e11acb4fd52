// float32: the active-set method in float32 where that is safe; every other member in double, where the answer is rounded
// to float32 and judged after that (solver.h, round_answer).
#pragma once
#include <cstring>
#include <limits>
#include <vector>

#include "call.h"
#include "calls.h"

namespace optlayer {

// Some members of a float32 problem in double, and their answers on the way back.
class Doubled {
  public:
    Args args;

    Doubled(const Args& from, std::vector<int64_t> members) : args(from), g(from), which(std::move(members)) {
        args.single = 2, args.batch = int32_t(which.size()), args.factor = {nullptr, 0};
        Arena measure;
        place(measure);
        int64_t size;
        block = Blocks::take(measure.used, size);
        Arena room(block);
        place(room);
        for (const Part& x : data()) read(x);
    }
    Doubled(const Doubled&) = delete;
    ~Doubled() { Blocks::give(block); }

    void store_point() const {
        for (const Part& x : point()) write(x);
        for (const Part& x : verdict()) write(x);
        for (Tensor Args::*x : {&Args::status, &Args::iterations})
            for (size_t k = 0; k < which.size(); ++k) *at<int32_t>(g.*x, which[k]) = *at<int32_t>(args.*x, int64_t(k));
    }
    // The solution of float32, for the derivative: of all members, or of those that double has not solved.
    void load_point(bool all) {
        for (size_t k = 0; k < which.size(); ++k) {
            if (!all && *status(k) == *at<int32_t>(g.status, which[k])) continue;
            for (const Part& x : point()) read(x, k);
            *status(k) = *at<int32_t>(g.status, which[k]);
        }
    }
    void kkt_solve() {
        for (const Part& x : right()) read(x);
        kkt_solve_double(args);
        for (const Part& x : answer()) write(x);
    }

  private:
    const Args& g;
    std::vector<int64_t> which;
    void* block = nullptr;

    struct Part {
        Tensor Args::*tensor;
        int width;
    };
    std::vector<Part> data() const {
        const int n = g.n, m = g.m, p = g.p;
        return {{&Args::Q, g.diagonal ? n : n * n}, {&Args::q, n}, {&Args::G, p * n}, {&Args::h, p}, {&Args::A, m * n}, {&Args::b, m},
                {&Args::lb, n}, {&Args::ub, n}, {&Args::h_lower, p}};
    }
    std::vector<Part> point() const {
        return {{&Args::z, g.n}, {&Args::s, g.p}, {&Args::lam, g.p}, {&Args::nu, g.m}, {&Args::lam_lb, g.n}, {&Args::lam_ub, g.n},
                {&Args::lam_lower, g.p}};
    }
    std::vector<Part> verdict() const { return {{&Args::primal_residual, 1}, {&Args::dual_residual, 1}, {&Args::gap, 1}}; }
    std::vector<Part> right() const {
        return {{&Args::r_z, g.n}, {&Args::r_lam, g.p}, {&Args::r_nu, g.m}, {&Args::r_lb, g.n}, {&Args::r_ub, g.n}, {&Args::r_lower, g.p}};
    }
    std::vector<Part> answer() const {
        return {{&Args::v_z, g.n}, {&Args::v_lam, g.p}, {&Args::v_nu, g.m}, {&Args::v_lb, g.n}, {&Args::v_ub, g.n}, {&Args::v_lower, g.p},
                {&Args::v_least, g.n + g.p + g.m}};
    }

    template <class T> static T* at(const Tensor& x, int64_t member) { return static_cast<T*>(x.data) + member * x.stride; }
    int32_t* status(size_t k) const { return at<int32_t>(args.status, int64_t(k)); }

    void place(Arena& room) {
        for (const auto& parts : {data(), point(), verdict(), right(), answer()})
            for (const Part& x : parts) {
                const Tensor& from = g.*x.tensor;
                const bool alone = from.stride != 0;
                if (from.data) args.*x.tensor = {room.take<double>(size_t(x.width) * (alone ? which.size() : 1)), alone ? x.width : 0};
            }
        for (Tensor Args::*x : {&Args::status, &Args::iterations}) args.*x = {room.take<int32_t>(which.size()), 1};
    }
    void read(const Part& x) {
        const size_t count = (g.*x.tensor).stride ? which.size() : 1;
        for (size_t k = 0; k < count; ++k) read(x, k);
    }
    void read(const Part& x, size_t k) {
        if (!(g.*x.tensor).data) return;
        const float* in = at<float>(g.*x.tensor, which[k]);
        double* out = at<double>(args.*x.tensor, int64_t(k));
        for (int i = 0; i < x.width; ++i) out[i] = double(in[i]);
    }
    void write(const Part& x) const {
        if (!(g.*x.tensor).data) return;
        for (size_t k = 0; k < which.size(); ++k) {
            const double* in = at<double>(args.*x.tensor, int64_t(k));
            float* out = at<float>(g.*x.tensor, which[k]);
            for (int i = 0; i < x.width; ++i) out[i] = float(in[i]);
        }
    }
};

// The members of the factor in double, as they stand before it.
struct DoubledMembers {
    int64_t count;
    const int64_t* list;
    char* factor;

    static size_t bytes(size_t count) { return whole_lines((count + 1) * sizeof(int64_t)); }
    explicit DoubledMembers(char* at)
        : count(*reinterpret_cast<int64_t*>(at)), list(reinterpret_cast<int64_t*>(at) + 1), factor(at + bytes(size_t(count))) {}
};

// Both factors in one block: that of double was made with room for the other.
inline size_t room_for(const Args& g, size_t members) {
    return whole_lines(static_cast<FactorHeader*>(g.factor.data)->size) + DoubledMembers::bytes(members);
}
inline void join(Args& g, const std::vector<int64_t>& which, const Tensor& doubled) {
    auto* own = static_cast<FactorHeader*>(g.factor.data);
    char* block = static_cast<char*>(doubled.data) - room_for(g, which.size());
    own->doubled = whole_lines(own->size);
    std::memcpy(block, own, own->size);
    auto* list = reinterpret_cast<int64_t*>(block + own->doubled);
    *list = int64_t(which.size());
    std::memcpy(list + 1, which.data(), which.size() * sizeof(int64_t));
    Blocks::give(own);
    g.factor = {block, doubled.stride};
}

template <class Wanted> std::vector<int64_t> members(const Args& g, Wanted&& wanted) {
    std::vector<int64_t> found;
    for (int64_t k = 0; k < g.batch; ++k)
        if (wanted(k)) found.push_back(k);
    return found;
}

inline int solve_single(Args& g) {
    const Args asked = g;  // a call leaves its choices in its arguments
    const View<const int32_t> status(g.status);
    if (Call<float>::solve(g) == 0) return 0;
    const std::vector<int64_t> which = members(g, [&](int64_t k) { return status.of(k)[0] != SOLVED; });
    Doubled again(asked, which);
    if (g.keep) again.args.factor.stride = int64_t(room_for(g, which.size()));
    const int left = solve_double(again.args);
    again.store_point();
    if (g.keep) join(g, which, again.args.factor);
    return left;
}

inline int kkt_solve_single(Args& g) {
    const Args asked = g;
    std::vector<int64_t> rest = Call<float>::kkt_solve(g);
    if (rest.empty()) return 0;
    if (g.factor.data) {
        auto* header = static_cast<FactorHeader*>(g.factor.data);
        if (header->doubled) {
            const DoubledMembers those(reinterpret_cast<char*>(header) + header->doubled);
            Doubled part(asked, std::vector<int64_t>(those.list, those.list + those.count));
            part.args.factor.data = those.factor;
            part.load_point(true);
            part.kkt_solve();
            const auto known = [&](int64_t k) { return std::binary_search(those.list, those.list + those.count, k); };
            rest.erase(std::remove_if(rest.begin(), rest.end(), known), rest.end());
        }
    }
    // Without a factor: once more from the start; what double does not solve, from the point that is known.
    if (!rest.empty()) {
        Doubled again(asked, rest);
        again.args.keep = 1;
        solve_double(again.args);
        again.load_point(false);
        again.kkt_solve();
        Blocks::give(again.args.factor.data);
    }
    return 0;
}

}  // namespace optlayer
