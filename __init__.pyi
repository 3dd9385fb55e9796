from .recognise.classifier import FewShotClassifier as FewShotClassifier
from .recognise.clips import ClipEncoder as ClipEncoder
from .recognise.recognizer import FewShotRecognizer as FewShotRecognizer

__version__: str
