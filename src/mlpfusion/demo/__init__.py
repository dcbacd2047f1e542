"""The main job on a real pretrained model, end to end and offline."""

from mlpfusion.demo.run import run_demo as run_demo
