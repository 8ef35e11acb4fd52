"""A wheel in an empty environment: does it import, solve, differentiate? Runs without pytest.

`--core`: the compiled core must be there. `--reference-only`: it must not, and the package must say why.
"""

import sys

import torch

import optlayer


def main() -> None:
    backends = optlayer.available()
    print(f"optlayer {optlayer.__version__} in {optlayer.__path__[0]}, torch {torch.__version__}")
    for name, reason in backends.items():
        print(f"  {name}: {reason or 'available'}")
    if "--core" in sys.argv:
        assert backends["cpu"] is None, backends["cpu"]
    if "--reference-only" in sys.argv:
        assert backends["cpu"], "the compiled core was found"

    # The nearest point of the box [0, 1]² to (2, ½) is (1, ½); only the free part follows the input.
    torch.set_default_dtype(torch.float64)
    q = torch.tensor([-2.0, -0.5], requires_grad=True)
    for backend, reason in backends.items():
        if reason is None and backend != "cuda":
            sol = optlayer.solve(torch.eye(2), q, lb=torch.zeros(2), ub=torch.ones(2), backend=backend)
            torch.testing.assert_close(sol.z, torch.tensor([1.0, 0.5]), atol=1e-7, rtol=0)
            (grad,) = torch.autograd.grad(sol.z.sum(), q)
            torch.testing.assert_close(grad, torch.tensor([0.0, -1.0]), atol=1e-6, rtol=0)
            print(f"  {backend}: solved and differentiated")


if __name__ == "__main__":
    main()
