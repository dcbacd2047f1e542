"""A budget for the whole model, spread over the layers where it hurts least."""

from mlpfusion.compression.budget.allocation import Curve as Curve
from mlpfusion.compression.budget.allocation import allocate as allocate
from mlpfusion.compression.budget.amount import Budget as Budget
from mlpfusion.compression.budget.amount import parse_budget as parse_budget
from mlpfusion.compression.budget.spread import Spread as Spread
from mlpfusion.compression.budget.spread import check_budget as check_budget
from mlpfusion.compression.budget.spread import spread_budget as spread_budget
