"""A project's data, the backbones that could take it, and the evidence for each, gathered as far as it is asked for."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from regraft import determinism
from regraft.backbones import catalogue
from regraft.backbones.card import read_card, stored_backbone
from regraft.backbones.extractor import Extractor, build_extractor
from regraft.backbones.fetch import fetch
from regraft.backbones.inputs import image_size, view
from regraft.data.records import open_split, read_info
from regraft.data.targets import REGRESSION
from regraft.files import read_json
from regraft.paths import Paths
from regraft.ranking.rank import Candidate, Evidence, Sample, gather_evidence, image_sizes, take_sample
from regraft.settings import BackboneSettings, EmbedSettings, FinetuneSettings
from regraft.tuning.classifier import graft
from regraft.tuning.objective import OBJECTIVES
from regraft.tuning.recipes import WAYS, Data, from_nothing, recipe_for
from regraft.tuning.strategies import try_out
from regraft.tuning.target_scale import TargetScale

log = logging.getLogger(__name__)

# Training examples that all candidates are ranked by, and those that judge the finalists. With 1,000 the standard error
# of an accuracy near 0.9 is a point, and embedding them takes seconds to a minute.
FIRST_ROUND, SECOND_ROUND = 1_000, 4_000
VALIDATION_SHARE = 0.5  # at most so many validation examples for one of training


class Contest:
    """Candidates for a project's data, each fetched once.

    Attributes:
        candidates: By name, those that could be taken; for images at some sizes each, unless the size is set.
        usual: The candidate that would be taken without looking.
        objective: What the data asks for.

    Raises:
        BackboneError: If no candidate takes this kind of data within the budget.
        ResourceError: If the weights of a candidate could not be downloaded now.
    """

    def __init__(
        self, backbone: BackboneSettings, embed: EmbedSettings, seed: int, paths: Paths, *, scratch: Path
    ) -> None:
        determinism.set_up(seed)
        self._embed, self._seed, self._paths, self._scratch = embed, seed, paths, scratch
        self._kind = read_info(paths.prepared).kind
        self._data = read_json(paths.reports / "data.json")
        self._view = view(embed, self._data) if self._kind == "audio" else None
        self._splits = {name: open_split(paths.prepared, name) for name in ("train", "validation")}
        train = self._splits["train"]
        self.objective = OBJECTIVES[train.task]
        self._classes = len(train.class_names)
        scale = TargetScale.of(train.labels) if train.task == REGRESSION else None
        self._labels = {
            name: scale.apply(split.labels) if scale else split.labels for name, split in self._splits.items()
        }
        self._known: dict[tuple[Any, ...], Evidence] = {}
        self._names = catalogue.candidates(
            self._kind, paths.root, named=backbone.candidates, most=backbone.max_parameters
        )
        self.candidates = [candidate for name in self._names for candidate in self._at_sizes(name)]
        self.usual = self.candidates[0]

    def rank(self, candidates: Sequence[Candidate], examples: int) -> list[Evidence]:
        """Return the evidence for `candidates` on about so many training examples, best first.

        Where the data has no more examples than an earlier round took, that round's evidence stands.
        """
        samples = self._samples(examples)
        found = []
        for number, candidate in enumerate(candidates):
            key = (candidate, *(len(sample.rows) for sample in samples.values()))
            if key not in self._known:
                self._known[key] = gather_evidence(
                    candidate,
                    self._load(candidate),
                    samples,
                    classes=self._classes,
                    objective=self.objective,
                    cache=self._paths.feature_cache,
                    batch_size=self._embed.batch_size,
                )
                log.info(
                    "%d of %d, %s: held-out %s of the probe %.4f, LogME %.4f", number + 1, len(candidates),
                    candidate.label, self.objective.loss_name, self._known[key].held_out_loss,
                    self._known[key].log_maximum_evidence,
                )  # fmt: skip
            found.append(self._known[key])
        return sorted(found, key=lambda evidence: (evidence.held_out_loss, evidence.candidate.label))

    def short_run(self, evidence: Evidence, examples: int) -> float | None:
        """Return the held-out loss after a short run of fine-tuning on the sample of `evidence`; None if it diverged.

        A run that is interrupted is continued.
        """
        extractor, probe, samples = self._load(evidence.candidate), evidence.probe, self._samples(examples)
        train, validation = samples["train"], samples["validation"]
        pretrained = extractor.card.is_pretrained
        data = Data(
            train, validation, evidence.features["train"], evidence.features["validation"], extractor.prepare,
            self._classes, self.objective,
        )  # fmt: skip
        recipe = recipe_for(FinetuneSettings(augment=False), self._seed, len(train.rows), pretrained=pretrained)
        facts = json.dumps([evidence.facts(), train.ids, validation.ids], sort_keys=True)
        identity = hashlib.sha256(facts.encode()).hexdigest()
        way = WAYS["lp_ft"] if pretrained else from_nothing(WAYS["lp_ft"])
        model = graft(extractor.model, probe.kernel, probe.bias)
        scratch = self._scratch / identity[:16]
        return try_out(
            way, model, extractor.model, data, probe=probe, recipe=recipe, scratch=scratch, run=identity
        ).log_loss

    def why(self, winner: Candidate, ranked: Sequence[Evidence], short_runs: Mapping[Candidate, float | None]) -> str:
        """Return the decision and its reasons in a sentence or two."""
        evidence = {row.candidate: row for row in ranked}
        best, usual = evidence[winner], evidence[self.usual]
        loss = self.objective.loss_name
        if winner == self.usual:
            against = "It is the one that would be taken without looking, too"
        else:
            against = f"{self.usual.label}, which would be taken without looking, has {usual.held_out_loss:.4f}"
        said = f"{winner.label}: held-out {loss} of the probe {best.held_out_loss:.4f}. {against}"
        runs = ", ".join(
            f"{candidate.label} {'diverged' if value is None else f'{value:.4f}'}"
            for candidate, value in short_runs.items()
        )
        return f"{said}; after a short run of fine-tuning: {runs}." if runs else f"{said}."

    def _samples(self, examples: int) -> dict[str, Sample]:
        wanted = {"train": examples, "validation": round(VALIDATION_SHARE * examples)}
        return {
            name: take_sample(split, self._labels[name], wanted[name], self.objective.groupings(self._labels[name])[0])
            for name, split in self._splits.items()
        }

    def _at_sizes(self, name: str) -> Iterator[Candidate]:
        """Yield the candidates that a backbone makes: for images one for each side worth trying."""
        card = read_card(stored_backbone(self._stored(name)))
        by_rule = image_size(self._embed, self._data, card, self._view)
        is_set = self._embed.image_size_px != "auto" or card.is_fixed_size
        if self._kind != "image" or is_set or not by_rule or not card.input_size_px:
            yield Candidate(name)
            return
        for side in image_sizes(by_rule, card.input_size_px):
            yield Candidate(name, side)

    def _stored(self, name: str) -> Path:
        """Return the folder that holds the backbone called `name`, fetched if it is not there."""
        folder = self._scratch / "backbones" / str(self._names.index(name))
        if not folder.is_dir():
            fetch(name, folder, root=self._paths.root, seed=self._seed)
        return folder

    def _load(self, candidate: Candidate) -> Extractor:
        folder = self._stored(candidate.name)
        side = candidate.image_size_px
        if side is None:
            side = image_size(self._embed, self._data, read_card(stored_backbone(folder)), self._view)
        keras.utils.clear_session(free_memory=False)
        determinism.set_up(self._seed)
        pair = self._data.get("pair") if self._kind == "text" else None
        return build_extractor(
            folder, image_size_px=side, max_tokens=self._embed.max_tokens, view=self._view, pair=pair
        )
