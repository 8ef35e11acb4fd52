// What is found once for a pattern of Q, G and A: where their entries lie, and the symbolic LDLᵀ of the KKT matrix
//     [ Q + ·   G'   A' ]
//     [ G      -·       ]
//     [ A           -·  ]
// with its diagonal free. It is quasi-definite (Vanderbei 1995): every order has a factor, and a row of G that has few
// entries is best eliminated first, which is the condensed form Q + G'DG; the fill decides, row by row.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/sparse.h"

namespace optlayer {

// The rows of a matrix: entries first[i] to first[i + 1], in columns col[·].
struct RowPattern {
    int rows = 0;
    std::vector<int> first, col;
    int entries() const { return int(col.size()); }
};

// A symmetric matrix by entries of its lower triangle; each is the mean of two of the user's values (the same one twice
// on the diagonal, and where only one triangle is stored).
struct LowerPattern {
    std::vector<int> row, col, one, other;
    int entries() const { return int(row.size()); }
};

class Symbolic {
  public:
    // size: order of the matrix; row > col: its entries below the diagonal; sign: of each pivot.
    Symbolic(int size, const std::vector<int>& row, const std::vector<int>& col, const std::vector<signed char>& sign);
    LdlPlan plan;
    std::vector<int> order, place;  // order[k]: what is eliminated at k; place: where each is eliminated
    double flops = 0;               // multiply-adds of a factorisation

  private:
    std::vector<int> first_, rows_at_, rows_, sources_at_, targets_, terms_at_, entries_at_, entry_, place_;
    std::vector<char> listed_;
    std::vector<int64_t> panel_;
    std::vector<LdlPlan::Source> sources_;
    std::vector<LdlPlan::Term> terms_;
    std::vector<signed char> sign_;
};

class SparsePlan {
  public:
    SparsePlan(int n, int m, int p, LowerPattern Q, RowPattern G, RowPattern A);
    // The values of a member in the order of SparsePattern, each `step` from the one before.
    void gather(const Args& g, int64_t member, double* to, int step) const;
    const LowerPattern Q;
    const RowPattern G, A;
    std::vector<int> user_row, user_col;  // of each value of Q as the user has it
    std::vector<int> stored;              // the entries of Q in the order of the values: the diagonal, then those below it
    std::unique_ptr<Symbolic> kkt;        // entries: those of Q below its diagonal, of G, of A
    std::unique_ptr<Symbolic> objective;  // of Q alone, if it is not diagonal: whether it is convex
    SparsePattern pattern{};

  private:
    struct Columns { std::vector<int> first, row, at; };
    std::vector<int> diagonal_, diagonal_at_, row_, col_, Q_first_, Q_other_, Q_at_;
    Columns of_G_, of_A_;
    static Incidence incidence(const RowPattern& M, int n, Columns& columns);
};

}  // namespace optlayer
