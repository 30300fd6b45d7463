"""The section `[penstock]` of Airflow's configuration, read with errors that hold no secret."""

from __future__ import annotations

from penstock.errors import ConfigError, Fault

from penstock_airflow import compatibility

SECTION = "penstock"


class Configuration:
    """Airflow's configuration parser; a value of the wrong kind is a ConfigError that names the option."""

    def __init__(self) -> None:
        self._parser = compatibility.configuration()

    def get(self, section: str, option: str, *, fallback: str | None = None) -> str | None:
        """Text without the white space around it (a command's last newline); empty is as absent.

        Raises ConfigError when its command or secrets backend fails.
        """
        try:
            text: str | None = self._parser.get(section, option, fallback=fallback)
        except Exception as error:  # whatever a command or a secrets backend raises: its text may hold their output
            told = f"its command or secrets backend fails ({type(error).__name__}); try it as Airflow's user"
            raise ConfigError([_fault(section, option, told)]) from None
        return (text or "").strip() or fallback

    def getfloat(self, section: str, option: str, *, fallback: float) -> float:
        """A number."""
        text = self.get(section, option)
        try:
            return fallback if text is None else float(text)
        except ValueError:
            raise ConfigError([_fault(section, option, f"{text!r} found; a number is expected")]) from None

    def getboolean(self, section: str, option: str, *, fallback: bool) -> bool:
        """True or False, in the words that Airflow takes for them."""
        text = self.get(section, option)
        if text is None:
            return fallback
        word = text.lower()
        if word not in _BOOLEANS:
            raise ConfigError([_fault(section, option, f"{text!r} found; True or False is expected")])
        return _BOOLEANS[word]


_BOOLEANS: dict[str, bool] = dict.fromkeys(("t", "true", "1"), True) | dict.fromkeys(("f", "false", "0"), False)


def _fault(section: str, option: str, message: str) -> Fault:
    return Fault(message, path=f"[{section}] {option}")
