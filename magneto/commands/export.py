"""`mode=export`: write a trained model as safetensors."""

from pathlib import Path
from typing import Any

from magneto.commands.resolve import ResolvedRun
from magneto.errors import ConfigError
from magneto.tasks import registry
from magneto.training import checkpoint_io


def export_model(run: ResolvedRun) -> dict[str, Any]:
    """Write the model of `checkpoint` to `output`, by default the folder `export` of its run."""
    config = run.config
    source = Path(config["checkpoint"])
    own = source.parent.parent if checkpoint_io.is_checkpoint(source) else source  # the run's folder
    target = Path(config["output"]) if config["output"] else own / "export"
    if target.exists():
        raise ConfigError(f"{target}: exists already. Set output to a new folder for the export.")
    checkpoint_io.export(registry.load_task(source), target)
    print(f"exported to {target}")
    return {"mode": "export", "folder": str(target)}
