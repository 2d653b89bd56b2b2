"""What the stand-in Hub (`hub_server`) holds: accounts, repositories, commits, files; and what it says of a card."""

import hashlib
import re
from dataclasses import dataclass, field

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".gz", ".zip")  # of those that the Hub's .gitattributes names
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class Account:
    name: str
    write: bool = True  # False: a token that may only read


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        """Git's name for what it stores: the file itself, or the pointer that stands for a large one."""
        stored = self.data
        if self.lfs:
            stored = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    kind: str  # "model", "space"
    id: str
    private: bool
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)  # in the order in which they were made
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    hardware: str | None = None

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": Blob(GITATTRIBUTES, lfs=False)})

    @property
    def head(self) -> str:
        return self.branches["main"]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.find(revision)
        assert commit is not None
        return {path: blob.data for path, blob in commit.files.items()}

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> str:
        listing = "".join(f"{path} {blob.git_oid}\n" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.kind} {self.id} {len(self.commits)} {title}\n{listing}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return oid

    def put(self, files: dict[str, bytes], title: str = "put by a test") -> str:
        """A commit made behind the client's back: any path, any content."""
        added = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        return self.commit("main", title, {**self.commits[self.head].files, **added})


def card_problems(content: str, kind: str) -> tuple[list[str], list[str]]:
    """What the Hub says of a card's metadata: errors, which refuse it, and warnings."""
    block = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
    if not block:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if not isinstance(data, dict):
        return ["The metadata must be a mapping"], []
    errors = []
    licences = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "openrail", "other")
    if "license" in data and data["license"] not in licences:
        errors.append(f'"license" must be one of [{", ".join(licences)}]')
    for name in ("tags", "datasets", "models"):
        if name in data and not (isinstance(data[name], list) and all(isinstance(item, str) for item in data[name])):
            errors.append(f'"{name}" must be an array of strings')
    for name in ("pipeline_tag", "library_name", "title", "app_file", "sdk_version", "python_version"):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    if kind == "space":
        if data.get("sdk") not in ("gradio", "docker", "static"):
            errors.append('"sdk" must be one of [gradio, docker, static]')
        colours = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
        for name in ("colorFrom", "colorTo"):
            if data.get(name, "red") not in colours:
                errors.append(f'"{name}" must be one of [{", ".join(colours)}]')
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    for model in data.get("model-index", []):
        for result in model.get("results", []):
            if not result.get("task", {}).get("type") or not {"type", "name"} <= result.get("dataset", {}).keys():
                errors.append('"model-index" results need a task type and a dataset with type and name')
            if not all("type" in metric and "value" in metric for metric in result.get("metrics", [])):
                errors.append('"model-index" metrics need a type and a value')
    return errors, []
