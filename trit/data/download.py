"""python -m trit.data.download: published shards and their tokenizer, as the published manifest.json lists them.

Input: a variant (sp1024, byte260, ...) of a hub repository; output: <out>/datasets/<dataset> and <out>/tokenizers.
Whole files are kept, so a broken download goes on where it stopped; the folder's own manifest is written last.
"""

import json
import os
import shutil
from pathlib import Path

from trit.console import Parser, command, counted, say
from trit.data.files import atomic_write
from trit.data.manifest import MANIFEST_NAME, file_sha256, read_manifest
from trit.data.shards import shard_length
from trit.data.tokenizer import open_tokenizer

REPOSITORY = "willdepueoai/parameter-golf"
ROOT_PREFIX = "datasets"
SOURCE_NAME = "source.json"


def hub_fetch(repository):
    """A function (remote path, folder) -> path of a fresh file under `folder`, reading the data set `repository` of the hub."""

    def fetch(remote, folder):
        try:
            import huggingface_hub.errors
        except ImportError:
            raise ValueError("downloading needs the package huggingface_hub; install the extra hub") from None
        try:
            return huggingface_hub.hf_hub_download(repository, remote, repo_type="dataset", local_dir=folder)
        except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError) as error:
            raise ValueError(
                f"{repository}: cannot fetch {remote} ({str(error).splitlines()[0]}); check the name and the network"
            ) from None

    return fetch


def find_entry(manifest, section, name, place):
    """The entry `name` of a manifest's list `section`; ValueError lists what there is."""
    entries = {entry["name"]: entry for entry in manifest.get(section, [])}
    if name not in entries or Path(name).name != name:
        raise ValueError(f"{place}: no {name} among its {section}; possible: {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def expected_tokens(manifest, dataset, split, index):
    """Tokens the shard `index` of `split` must hold, or None where the manifest does not say."""
    stats, shard_size = dataset.get("stats") or {}, manifest.get("shard_size")
    files, total = stats.get(f"files_{split}"), stats.get(f"tokens_{split}")
    if not files or not shard_size or index < files - 1:
        return shard_size
    return total - (files - 1) * shard_size if total else None


def check_file(path, tokens, sha256):
    """ValueError unless `path` is a shard (`tokens` is False for other files) of that many tokens and has that hash, where known."""
    if tokens is not False:
        held = shard_length(path)
        if tokens is not None and held != tokens:
            raise ValueError(f"{path}: {held} tokens where the manifest says {tokens}")
    if sha256 and file_sha256(path) != sha256:
        raise ValueError(f"{path}: its sha256 is not the manifest's {sha256[:12]}...")


class Fetcher:
    """Brings files of one repository into place: fetched into `staging`, checked, then renamed."""

    def __init__(self, fetch, staging):
        self.fetch, self.staging, self.fetched = fetch, staging, 0

    def manifest(self, remote):
        """The published manifest, always fetched anew: a copy kept from another day or repository may not fit the shards."""
        path = Path(self.fetch(remote, self.staging))
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{remote}: the published manifest is not JSON ({error})") from None
        finally:
            path.unlink()

    def bring(self, remote, target, tokens=False, sha256=None):
        """Put `remote` at `target` unless it lies there whole: other files than shards need a hash to be known for whole."""
        if target.exists() and (tokens is not False or sha256):
            try:
                return check_file(target, tokens, sha256)
            except ValueError:
                target.unlink()
        path = Path(self.fetch(remote, self.staging))
        try:
            check_file(path, tokens, sha256)
        except ValueError as error:
            path.unlink()
            raise ValueError(f"{remote}: what arrived is damaged or not what was published ({error}); run the command again") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        self.fetched += 1
        return None


def bring_tokenizer(fetcher, entry, prefix, folder):
    """Bring the model of a manifest's tokenizer entry into `folder`; returns the opened tokenizer."""
    if entry.get("kind") in ("byte", "pure_byte", "byte260"):
        return open_tokenizer("byte260")
    model = entry.get("model_path") or entry.get("path")
    if not model:
        raise ValueError(f"tokenizer {entry['name']}: the manifest names no model_path; choose another variant")
    target = folder / Path(model).name
    fetcher.bring(f"{prefix}/{model}", target, sha256=entry.get("sha256") or entry.get("model_sha256"))
    return open_tokenizer(target, entry["name"])


def download(variant, train_shards, out, repository=REPOSITORY, prefix=ROOT_PREFIX, fetch=None, say=say):
    """Bring all validation shards, the first `train_shards` training shards and the tokenizer of `variant` under `out`.

    Returns the data folder. `fetch` stands in for the hub: (remote path, folder) -> path of a file made under `folder`.
    """
    name = f"fineweb10B_{variant}"
    folder = Path(out) / "datasets" / name
    source = {"repository": repository, "prefix": prefix}
    known = json.loads((folder / SOURCE_NAME).read_text()) if (folder / SOURCE_NAME).exists() else None
    if known not in (None, source):
        raise ValueError(
            f"{folder}: holds shards of {known['repository']} ({known['prefix']}), not of {repository} ({prefix}); give another --out"
        )
    if known is None and any(folder.glob("*.bin")):
        raise ValueError(f"{folder}: holds shards of unknown origin; move them away or give another --out")
    staging = Path(out) / (".download--" + f"{repository}/{prefix}".replace("/", "--"))
    staging.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(fetch or hub_fetch(repository), staging)
    manifest = fetcher.manifest(f"{prefix}/{MANIFEST_NAME}")
    place = f"{repository}/{prefix}/{MANIFEST_NAME}"
    dataset = find_entry(manifest, "datasets", name, place)
    entry = find_entry(manifest, "tokenizers", dataset["tokenizer_name"], place)
    stats = dataset.get("stats") or {}
    if not 0 < train_shards <= stats.get("files_train", 0):
        raise ValueError(f"--train-shards {train_shards}: {variant} has {stats.get('files_train', 0)} training shards; give 1 to that many")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / SOURCE_NAME, json.dumps(source).encode())
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    hashes = {file["name"]: file.get("sha256") for file in dataset.get("files", [])}
    wanted = [("val", index) for index in range(stats.get("files_val", 0))] + [("train", index) for index in range(train_shards)]
    files = []
    for split, index in counted(wanted, variant, len(wanted), " shards"):
        shard = f"fineweb_{split}_{index:06d}.bin"
        tokens = expected_tokens(manifest, dataset, split, index)
        fetcher.bring(f"{prefix}/datasets/{name}/{shard}", folder / shard, tokens, hashes.get(shard))
        files.append({"name": shard, "tokens": shard_length(folder / shard), "sha256": hashes.get(shard)})
    tokenizer = bring_tokenizer(fetcher, entry, prefix, Path(out) / "tokenizers")
    if dataset.get("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(f"{place}: {name} has vocab_size {dataset['vocab_size']}, its tokenizer {tokenizer.vocab_size} pieces")
    local = {
        "version": 1,
        "name": name,
        "source": source,
        "tokenizer": {
            "name": entry["name"],
            "kind": tokenizer.kind,
            "file": "" if tokenizer.path == "byte260" else os.path.relpath(tokenizer.path, folder),
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "lossless": tokenizer.lossless,
        },
        "append_eos": manifest.get("append_eos", False),
        "shard_size": manifest.get("shard_size"),
        "files": files,
    }
    atomic_write(folder / MANIFEST_NAME, (json.dumps(local, indent=1) + "\n").encode())
    shutil.rmtree(staging, ignore_errors=True)
    say(f"{folder}: {len(files)} shards, {fetcher.fetched} files fetched now, the rest was here")
    return folder


def main(arguments=None):
    """Command line of this module."""
    parser = Parser(prog="python -m trit.data.download", description="Fetch published token shards.", answers=True)
    parser.add_argument("--variant", default="sp1024", help="data set of the repository: sp1024, sp8192, byte260, ...")
    parser.add_argument(
        "--train-shards", type=int, default=80, help="training shards to fetch, from the first; all validation shards come too"
    )
    parser.add_argument("--out", default="data", help="folder that gets datasets/ and tokenizers/")
    options = parser.parse_args(arguments)
    repository = os.environ.get("MATCHED_FINEWEB_REPO_ID", REPOSITORY)
    prefix = os.environ.get("MATCHED_FINEWEB_REMOTE_ROOT_PREFIX", ROOT_PREFIX)
    with command(options.json, "stopped; whole files stay, and the same command goes on from there") as answer:
        folder = download(options.variant, options.train_shards, options.out, repository, prefix)
        answer |= {"folder": folder, **read_manifest(folder)}


if __name__ == "__main__":
    main()
