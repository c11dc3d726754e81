"""The main job, top to bottom: the only place where all stages meet.

dense answers -> direction -> compress -> repair -> write -> evaluate what was written -> export -> run in llama.cpp.
Each stage leaves a file in the workspace, so an interrupted run goes on after its last finished stage.
"""

from aird_mlx.pipeline.plan import Plan, plan_repair
from aird_mlx.pipeline.run import repair_model
from aird_mlx.settings import RepairSettings, output_folder

__all__ = ["Plan", "RepairSettings", "output_folder", "plan_repair", "repair_model"]
