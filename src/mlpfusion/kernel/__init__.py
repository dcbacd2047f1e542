"""Empirical neural tangent kernels of MLPs: the Adam kernel, the plain one, per neuron, and how far two are apart."""

from mlpfusion.kernel.accumulate import BlockKernels as BlockKernels
from mlpfusion.kernel.accumulate import KernelAccumulator as KernelAccumulator
from mlpfusion.kernel.accumulate import adam_kernel_of_parameters as adam_kernel_of_parameters
from mlpfusion.kernel.accumulate import join_kernels as join_kernels
from mlpfusion.kernel.error import KernelComparison as KernelComparison
from mlpfusion.kernel.error import KernelError as KernelError
from mlpfusion.kernel.error import centered_kernel_alignment as centered_kernel_alignment
from mlpfusion.kernel.error import compare_kernels as compare_kernels
from mlpfusion.kernel.error import kernel_error as kernel_error
from mlpfusion.kernel.neurons import NeuronKernels as NeuronKernels
from mlpfusion.kernel.neurons import NeuronProducts as NeuronProducts
from mlpfusion.kernel.neurons import down_bias_kernel as down_bias_kernel
from mlpfusion.kernel.neurons import neuron_kernels as neuron_kernels
from mlpfusion.kernel.neurons import neuron_products as neuron_products
from mlpfusion.kernel.neurons import with_scales as with_scales
from mlpfusion.kernel.ntk import adam_kernel as adam_kernel
from mlpfusion.kernel.ntk import plain_kernel as plain_kernel
from mlpfusion.kernel.scalar import SCALARS as SCALARS
from mlpfusion.kernel.scalar import RandomHead as RandomHead
from mlpfusion.kernel.scalar import Scalar as Scalar
from mlpfusion.kernel.scalar import logit as logit
from mlpfusion.kernel.scalar import loss as loss
from mlpfusion.kernel.scalar import prob0 as prob0
from mlpfusion.kernel.trace import BlockTrace as BlockTrace
from mlpfusion.kernel.trace import concatenate_traces as concatenate_traces
from mlpfusion.kernel.trace import random_trace as random_trace
