"""A budget for the whole model, spread over the layers where it hurts least."""

from mlpfusion.budget.allocation import Curve as Curve
from mlpfusion.budget.allocation import allocate as allocate
from mlpfusion.budget.amount import Budget as Budget
from mlpfusion.budget.amount import parse_budget as parse_budget
from mlpfusion.budget.spread import Spread as Spread
from mlpfusion.budget.spread import check_budget as check_budget
from mlpfusion.budget.spread import spread_budget as spread_budget
