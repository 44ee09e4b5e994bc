"""Metadata of the application's model, as TensorFlow Lite has it, with its labels as a file.

The layout is that of ``tflite-support`` (its ``metadata_schema.fbs``, identifier M001): a buffer called ``TFLITE_METADATA`` in
the model, which names inputs, outputs and files, and the files as a ZIP archive after it (`fedgrass.associated_files`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fedgrass.associated_files import with_files
from fedgrass.authoring.flatbuffer import share_constants
from fedgrass.protocol.names import SCORE
from fedgrass.quantization import packed

LABELS = "labels.txt"
VOCABULARY = "vocabulary.txt"
_BUFFER = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.1"
_DESCRIPTIONS, _AXIS_LABELS, _VOCABULARY = 1, 2, 5
_FEATURES, _IMAGE = 1, 2
_COLOURS = {1: 2, 3: 1}  # by channels: grey, RGB


@dataclass(frozen=True)
class Description:
    """What there is to say of a model.

    Parameters
    ----------
    name, text
        Its name, and a sentence about it.
    x, y
        A sentence about the input and one about the output.
    labels
        Names of the values on the output's last axis.
    vocabulary
        Words in the order of the input's numbers.
    image
        Height, width and channels, if the input is an image with values from 0 to 1.
    quantile
        Of an anomaly detector: the share of normal examples whose scores lie below the threshold.
    """

    name: str
    text: str = ""
    x: str = ""
    y: str = ""
    labels: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
    quantile: float | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The files that travel with the model."""
        found = {LABELS: self.labels, VOCABULARY: self.vocabulary}
        files = {name: "".join(f"{line}\n" for line in lines).encode() for name, lines in found.items() if lines}
        if self.quantile is not None:
            # Without a threshold, which each device's admission finds.
            files[SCORE] = (json.dumps({"score": "mean_squared_error", "quantile": self.quantile}) + "\n").encode()
        return files


def described(content: bytes, description: Description) -> bytes:
    """Return a model with its metadata and files in it. Constants move: look for them afterwards."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    share_constants(model)
    (signature,) = model.signatureDefs
    buffer, entry = schema.BufferT(), schema.MetadataT()
    # In the signature's order, which TensorFlow Lite's metadata refers to by position.
    inputs, outputs = ([entry.name.decode() for entry in entries] for entries in (signature.inputs, signature.outputs))
    buffer.data = np.frombuffer(_metadata(description, inputs, outputs), np.uint8)
    entry.name, entry.buffer = _BUFFER, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return with_files(packed(model), description.files)


def _metadata(description: Description, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return the table ModelMetadata; numbers of fields are those of the schema."""
    writer = _Writer()
    x_files = [(VOCABULARY, "words by their numbers", _VOCABULARY)] if description.vocabulary else []
    y_files = [(LABELS, "names of the classes", _AXIS_LABELS)] if description.labels else []
    if description.quantile is not None:
        y_files.append((SCORE, "how an example's score is made: an anomaly's is beyond a threshold", _DESCRIPTIONS))
    x = [writer.tensor(name, description.x, x_files, description.image) for name in inputs]
    y = [writer.tensor(name, description.y, y_files, None) for name in outputs]
    # Field numbers of SubGraphMetadata: 2 inputs, 3 outputs.
    subgraph = writer.table(9, {2: writer.vector(x), 3: writer.vector(y)})
    fields = {
        0: writer.text(description.name),
        1: writer.text(description.text),
        3: writer.vector([subgraph]),
        7: writer.text(_PARSER_VERSION),
    }
    writer.builder.Finish(writer.table(8, fields), _IDENTIFIER)
    return bytes(writer.builder.Output())


class _Writer:
    """Tables of a flatbuffer from their fields' numbers; a field that is None is left out."""

    def __init__(self) -> None:
        self.builder: flatbuffers.Builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int | None:
        return self.builder.CreateString(value) if value else None

    def vector(self, offsets: Sequence[int]) -> int | None:
        if not offsets:
            return None
        self.builder.StartVector(4, len(offsets), 4)
        # Flatbuffers are written from the end.
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def table(self, fields: int, offsets: dict[int, int | None], small: dict[int, int] | None = None) -> int:
        """Write a table of a FlatBuffer.

        Parameters
        ----------
        fields
            How many the schema has.
        offsets
            Offsets of the fields that are kept elsewhere, by number; None leaves one out.
        small
            Values of the fields of a byte, by number.

        Returns
        -------
        int
            Offset of the table.
        """
        self.builder.StartObject(fields)
        for number, offset in offsets.items():
            if offset is not None:
                self.builder.PrependUOffsetTRelativeSlot(number, offset, 0)
        for number, value in (small or {}).items():
            self.builder.PrependUint8Slot(number, value, 0)
        return int(self.builder.EndObject())

    def tensor(
        self, name: str, text: str, files: Sequence[tuple[str, str, int]], image: tuple[int, int, int] | None
    ) -> int:
        """Write the description of a tensor.

        Parameters
        ----------
        name, text
            Its name, and a sentence on it.
        files
            Name, description and kind of each file that goes with it.
        image
            Height, width and channels, of a tensor that is an image.

        Returns
        -------
        int
            Offset of the description.
        """
        kept = [self.table(4, {0: self.text(file), 1: self.text(what)}, {2: kind}) for file, what, kind in files]
        fields = {0: self.text(name), 1: self.text(text), 3: self._content(image), 6: self.vector(kept)}
        if image is not None:
            fields[4] = self.vector([self._from_bytes()])
        return self.table(7, fields)

    def _content(self, image: tuple[int, int, int] | None) -> int:
        if image is None:
            return self.table(2 + 1, {1: self.table(0, {})}, {0: _FEATURES})
        properties = self.table(2, {}, {0: _COLOURS.get(image[2], 0)})
        return self.table(2 + 1, {1: properties}, {0: _IMAGE})

    def _from_bytes(self) -> int:
        """Say how pixels of 0 to 255 become what the model takes: divided by 255."""
        options = self.table(2, {0: self._floats([0.0]), 1: self._floats([255.0])})
        return self.table(2, {1: options}, {0: 1})

    def _floats(self, values: Sequence[float]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return int(self.builder.EndVector())
