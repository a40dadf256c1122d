"""What the user should know of the zeros that were asked for, or chosen."""

from edgec.spec.exploit import eligible, what_of_zeros
from edgec.spec.profile import Profile
from edgec.tune.cost import uniform_plan
from edgec.tune.shapes import Solved
from edgec.tune.task import Task
from edgec.tune.units import cheap_method


def zeros_remarks(task: Task, solved: Solved, profile: Profile) -> list[str]:
    """Return remarks on candidates that gain nothing by their zeros, and on those of the tuned profile."""
    problem, plan, decoder = solved.problem, solved.shape.plan, solved.left.decoder
    sparse = [candidate for candidate in problem.candidates if candidate.pattern]
    plans = [uniform_plan(plan, problem.units, candidate) for candidate in sparse]
    idle = [one for one in plans if not eligible(decoder, one, task.target)]
    remarks = []
    if idle:
        labels = ", ".join(c.label for c, one in zip(sparse, plans, strict=True) if one in idle)
        remarks.append(f"{labels}: {what_of_zeros(idle[0], task.target, 0)}")
    if len(idle) < len(sparse) and task.budget.kind != "latency":
        remarks.append("zeros make no artifact smaller: they are for budgets of latency")
    if profile.sparse is None:
        return remarks
    if len(idle) < len(sparse) and task.budget.kind == "latency":
        remarks.append(
            "sparse matrices count as the 2:4 storage of their kernels; TensorRT takes those where it finds them faster"
        )
    if cheap_method(profile.sparse.method) != profile.sparse.method:
        remarks.append(f"{cheap_method(profile.sparse.method)} stands in here for {profile.sparse.method}")
    base = task.profile.sparse
    if base is not None and base.allocation != profile.sparse.allocation:
        remarks.append(f"zeros are spread as was chosen here, not by the base profile's {base.allocation}")
    return remarks
