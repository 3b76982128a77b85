"""The upload: one commit to a new repository of a hub, so that it holds everything or nothing."""

import os

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from diffgan.errors import UserError, first_line
from diffgan.sharing.content import Content

CARD = "README.md"
OWN_FILES = {".gitattributes"}  # that the hub itself puts into a new repository
REFUSED, EXISTS = (401, 403), 409
NETWORK_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # of any version's HTTP library


def check_repository(repository: str) -> None:
    """Raise a UserError if a name is not `owner/name` as the hub allows it."""
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise UserError(f"{repository}: {first_line(error)}") from error
    if repository.count("/") != 1:
        raise UserError(f"{repository}: must be owner/name")


def upload(content: Content, card: str, repository: str, private: bool) -> str:
    """Create the repository and commit the files; returns its address.

    An interrupted upload leaves the repository empty. The same call resumes: the hub keeps large files that arrived.

    Raises:
        UserError: there is no token, the hub refuses it or cannot be reached, the repository holds files already, or
            the upload fails.
    """
    token = get_token()
    if token is None:
        raise UserError("push: no token; set HF_TOKEN to one that may write, or run hf auth login")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        address = _create(api, content.repository_type, repository, private)
        operations = [CommitOperationAdd(name, file) for name, file in content.files.items()]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        api.create_commit(repository, operations, commit_message="Upload", repo_type=content.repository_type)
    except (*NETWORK_ERRORS, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{repository}: {_reason(error, api.endpoint)}") from error
    return address


def _create(api: HfApi, kind: str, repository: str, private: bool) -> str:
    """Create the repository, or take one that is still empty; returns its address.

    Raises:
        UserError: it holds files.
    """
    try:
        return str(api.create_repo(repository, repo_type=kind, private=private))
    except HfHubHTTPError as error:
        if _status(error) != EXISTS:
            raise
    if files := set(api.list_repo_files(repository, repo_type=kind)) - OWN_FILES:
        raise UserError(f"{repository}: exists and holds {sorted(files)[0]}; choose another name")
    if private and not api.repo_info(repository, repo_type=kind).private:
        raise UserError(f"{repository}: exists and is public; choose another name, or omit --private")
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{api.endpoint}/{prefix}{repository}"


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error or of what it was raised from."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error.response.status_code
        error = error.__cause__
    return None


def _reason(error: BaseException, endpoint: str) -> str:
    """What failed, as one line that says what to do."""
    status = _status(error)
    if status in REFUSED:
        return f"{endpoint} refuses the token ({status}); set HF_TOKEN to one that may write there"
    if status is not None:
        return f"{endpoint} answered {status}; run the same command again"
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(str(error).split()) or type(error).__name__
    return f"{endpoint} cannot be reached or broke off ({message}); run the same command again"
