"""The language of a text, with the extra `language` (py3langid: 97 languages and more, its model is in the package)."""

from collections.abc import Callable

from instruct_jax.data.errors import DataError

Identify = Callable[[str], tuple[str, float]]  # text -> (ISO 639 code, probability)


def identifier() -> Identify:
    try:
        from py3langid import langid
    except ImportError as error:
        raise DataError("languages needs the extra language: pip install 'instruct-jax[language]', or remove languages") from error
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True).classify
