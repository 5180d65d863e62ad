"""The language of a text, with the extra `language` (py3langid, whose model is in the package)."""

from collections.abc import Callable, Sequence

from instruct_jax.errors import DataError, shorten

Identify = Callable[[str], tuple[str, float]]  # text -> (ISO 639 code, probability)


def identifier(known: Sequence[str]) -> Identify:
    """Loads the model; DataError where it is not installed, or does not know one of the codes."""
    try:
        from py3langid import langid
    except ImportError as error:
        raise DataError(
            "languages needs the extra language, and py3langid is not installed; pip install"
            " '.[language]', or set languages to null"
        ) from error
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    unknown = sorted(set(known) - set(model.labels))
    if unknown:
        codes = " ".join(sorted(model.labels))
        raise DataError(
            f"languages.keep={unknown} cannot be found; use ISO 639 codes, of {shorten(codes, 700)}"
        )
    return model.classify
