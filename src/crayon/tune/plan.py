"""What a sweep searches, and for what: its identity, which its study keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crayon.config.names import differences
from crayon.config.settings import Scalar
from crayon.errors import BadInput
from crayon.tune.space import Dimension

ABSENT = "not there"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study is a study of. A study is gone on with only by a command that agrees."""

    settings: Mapping[str, Scalar]
    """Of all trials, by dotted name, but for those searched (crayon.config.names.identity)."""
    before: Mapping[str, Scalar] = field(default_factory=dict)
    """What settings were that a study of an earlier version doesn't have yet (crayon.config.names.with_defaults)."""
    space: Mapping[str, Dimension]
    metric: str
    direction: Literal["max", "min"]
    objective: Literal["quality", "pareto"]
    sampler: Literal["tpe", "random"]
    early_stopping: bool
    seed: int

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": {k: v for k, v in self.settings.items() if k not in {*self.space, "seed"}},
            "space": {name: dimension.as_json() for name, dimension in self.space.items()},
            **{
                k: getattr(self, k)
                for k in ("metric", "direction", "objective", "sampler", "early_stopping", "seed")
            },
        }

    def check(self, known: Mapping[str, Any], name: str) -> None:
        """Raise BadInput unless `known`, the plan that the study called `name` has (`as_json`), is this one."""
        wanted = json.loads(json.dumps(self.as_json()))
        there_now = {key: value for key, value in self.before.items() if key in wanted["settings"]}
        before = _flat({**known, "settings": there_now | known["settings"]})
        now = _flat(wanted)
        different = differences(before, now, ABSENT)
        if not different:
            return
        different.sort(key=lambda key: (key not in ("job", "preset"), not key.startswith("space."), key))
        words = [f"{key} was {before.get(key, ABSENT)}, now {now.get(key, ABSENT)}" for key in different[:3]]
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise BadInput(
            f"The sweep {name!r} was started otherwise ({'; '.join(words)}{more}); give the same settings to go on "
            "with it, or choose another --name."
        )


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in plan.items() if key not in ("settings", "space")},
        **plan["settings"],
        **{f"space.{key}": _written(value) for key, value in plan["space"].items()},
    }


def _written(dimension: Mapping[str, Any]) -> str:
    return str(Dimension(**{**dimension, "choices": tuple(dimension["choices"])}))
