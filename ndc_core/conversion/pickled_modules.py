"""Models that NVIDIA's programs pickle whole: their classes by name, constructor arguments, weights and buffers."""

from typing import Any

from ndc_core.conversion.foreign_models import ConversionError, Model
from ndc_core.untrusted_files.pickle_values import Instance, StoredTensor

SIGMA_DATA = 0.5
TRAINING_ONLY = ("dropout", "label_dropout")
# The order of EDM2's positional arguments.
PLACED = dict.fromkeys(("Precond", "UNet"), ("img_resolution", "img_channels", "label_dim"))
KINDS = {"SongUNet": "edm-song", "DhariwalUNet": "edm-adm", "UNet": "edm2"}


def from_preconditioned(outer: Instance, notes: dict[str, Any]) -> Model:
    """A model of EDM or EDM2, with its constructors' arguments."""
    inner, prefix = {"EDMPrecond": ("model", "model."), "Precond": ("unet", "unet.")}.get(outer.class_name, ("", ""))
    module = _modules(outer).get(inner)
    if not isinstance(module, Instance) or module.class_name not in KINDS:
        raise ConversionError(
            f"it holds a {outer.class_name} around {getattr(module, 'class_name', 'nothing known')}; there are: "
            "EDMPrecond around SongUNet or DhariwalUNet, and EDM2's Precond around UNet"
        )
    wrapper, given = (_arguments(instance) for instance in (outer, module))
    if wrapper.get("img_channels", given.get("img_channels")) not in (1, 3):
        raise ConversionError(
            "a model of latents, not of pixels: a certificate speaks of pixels, and the encoder in front of the model "
            "can itself be attacked"
        )
    sigma_data = wrapper.get("sigma_data", SIGMA_DATA)
    if sigma_data != SIGMA_DATA:
        raise ConversionError(f"sigma_data is {sigma_data}; the grids' weights here are for {SIGMA_DATA}")
    arguments = {name: _plain(value) for name, value in given.items() if name not in TRAINING_ONLY}
    dropped = given.get("label_dropout", wrapper.get("label_dropout", 0)) or 0
    weights = {
        name.removeprefix(prefix): value.tensor() for name, value in flatten(outer).items() if name.startswith(prefix)
    }
    knows_no_label = not arguments.get("label_dim") or dropped > 0
    notes = {**notes, "kind": outer.class_name, "class": module.class_name}
    return Model(KINDS[module.class_name], arguments, weights, knows_no_label, notes)


def _modules(module: Instance) -> dict[str, Any]:
    modules = module.state.get("_modules", {})
    return modules if isinstance(modules, dict) else {}


def _arguments(module: Instance) -> dict[str, Any]:
    given, placed = module.state.get("_init_kwargs"), module.state.get("_init_args", ())
    names = PLACED.get(module.class_name, ())
    if not isinstance(given, dict) or not isinstance(placed, list | tuple) or len(placed) > len(names):
        raise ConversionError(f"its {module.class_name} does not say which arguments it was made with")
    return {**dict(zip(names, placed, strict=False)), **given}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float | None):
        raise ConversionError(f"an argument of its network is a {type(value).__name__}")
    return value


def flatten(module: Instance) -> dict[str, StoredTensor]:
    """Parameters and buffers of a module and all below it, under the names of a state dict.

    Raises:
        ConversionError: a module occurs twice, as it does in a tree that takes forever to walk.
    """
    flat: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    ahead = [("", module)]
    while ahead:
        prefix, module = ahead.pop()
        if id(module) in seen:
            raise ConversionError(f"its module {prefix.rstrip('.')} occurs twice")
        seen.add(id(module))
        skipped = module.state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            tensors = module.state.get(kind)
            for name, value in tensors.items() if isinstance(tensors, dict) else ():
                if isinstance(value, StoredTensor) and name not in skipped:
                    flat[f"{prefix}{name}"] = value
        children = _modules(module).items()
        ahead += [(f"{prefix}{name}.", child) for name, child in children if isinstance(child, Instance)]
    return flat
