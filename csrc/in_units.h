// A sparse call in natural units (units.h), where those of the data are far from them: what the engine measures by one norm over
// variables, or over rows, would otherwise see those in large units alone. Powers of two round nothing.
#pragma once
#include <vector>

#include "kernels/args.h"
#include "units.h"

namespace optlayer {

class SparsePlan;

class InUnits {
  public:
    // `solving`: a solve; else a derivative, whose call has a solution and right-hand sides as well.
    InUnits(const SparsePlan& plan, Args& user, bool solving);
    ~InUnits() { user_.factor = args().factor; }  // (which there is after Ctrl-C, too)
    Args& args() { return members_.empty() ? user_ : scaled_; }
    void finish();  // what the call has found goes to the user, in the user's units

  private:
    using Numbers = std::vector<double>;
    struct Units {  // z = D ẑ; rows of G and A are times E, F, the objective is times c
        Numbers D, E, F;
        double c = 1;
    };
    struct Quantity {  // x̂ = unit^power c^objective x
        Tensor Args::*at;
        Numbers Units::*unit;
        int power, objective;
        double factor(const Units& of, size_t i) const;
    };
    static const std::vector<Quantity> data, solution, right, derivative;

    NaturalUnits look(int64_t member, bool far) const;
    Units natural(const NaturalUnits& units, int64_t member) const;
    template <class F> void copy(Tensor Args::*at, size_t size, int64_t count, F&& factor);
    void copy(const std::vector<Quantity>& quantities);
    void scale_in_place(const std::vector<Quantity>& quantities, bool into) const;

    const SparsePlan& plan_;
    Args& user_;
    Args scaled_;
    const bool solving_;
    bool shared_;                 // the batch shares the matrices, and so the units
    std::vector<Units> members_;  // none where all of them are near
    std::vector<Numbers> copies_;
};

}  // namespace optlayer
