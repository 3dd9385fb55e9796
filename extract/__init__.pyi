from .config import ExtractConfig as ExtractConfig
from .decode import Frames as Frames
from .decode import read_frames as read_frames
from .decode import segment_middles as segment_middles
from .encoder import Encoder as Encoder
from .failures import DecodeError as DecodeError
from .pipeline import extract as extract
