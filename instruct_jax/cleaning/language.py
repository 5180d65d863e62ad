"""The language of a text, with the extra `language` (py3langid, whose model is in the package)."""

from collections.abc import Callable, Sequence

from instruct_jax.errors import DataError, shorten

Identify = Callable[[str], tuple[str, float]]  # text -> (ISO 639 code, probability)


def identifier(known: Sequence[str]) -> Identify:
    """DataError where it is not installed, or one of the codes `known` is none that it can find."""
    try:
        from py3langid import langid
    except ImportError as error:
        repair = "pip install '.[language]', or set languages to null"
        raise DataError(
            f"languages needs the extra language, and py3langid is not installed; {repair}"
        ) from error
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(known) - set(model.labels)):
        raise DataError(
            f"languages.keep={unknown} cannot be found; use ISO 639 codes, of"
            f" {shorten(' '.join(sorted(model.labels)), 700)}"
        )
    return model.classify
