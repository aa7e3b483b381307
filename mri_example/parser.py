"""The parser of one command: what it says of options that cannot be used."""

import re
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

GROUPS = ("model", "masks", "training", "data", "trainer", "simulation")
OF_A_CLASS = re.compile(r"(Problem with given class_path .*?)( - Expected |$)")
OF_NO_TYPE = re.compile(r'key "(\S+)": Does not validate .* Given value: (.*)')


def _path(text: str) -> Path:
    """Return a path, in a configuration too not an empty one, nor one with a tilde."""
    if not text:
        raise ValueError("it is empty: give a value, or leave it out")
    return Path(text).expanduser()


register_type(Path, str, _path, type_check=isinstance)


class Parser(ArgumentParser):
    """A parser that says what is wrong, and not all that would have been right."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and refuse what is no set of options where one must be."""
        parsed = self._parsed(*args, **kwargs)
        for name in GROUPS:
            value = parsed.get(name)
            if name in parsed and not isinstance(value, Namespace | Path):
                text = f"{name} is {value!r}, but must hold options, `name: value` each"
                self.error(f"{text}; leave it out for the defaults")
        if parsed.get("model") is None:
            return parsed
        # a model that is chosen starts from its own defaults, not those of another
        self.set_defaults({"model": {"class_path": parsed.model.class_path}})
        return self._parsed(*args, **kwargs)

    def _parsed(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError:
            self.error("the configuration is not text: write it as YAML")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2, unless another parser asked."""
        if not self.exit_on_error:
            super().error(message, ex)
        said = " ".join(message.split()).rstrip(".:")
        if match := OF_A_CLASS.search(said):
            said = match[1]
        elif match := OF_NO_TYPE.search(said):
            said = '"{}" is {}, which it cannot be'.format(*match.groups())
        if "Expected a <class 'tuple'>" in said:
            said += ": write what belongs together as a list, such as [4,8] or [4]"
        self.exit(2, f"error: {said}: `{self.prog} --help` lists what there is\n")
