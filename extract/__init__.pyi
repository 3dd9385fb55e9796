from .config import ExtractConfig as ExtractConfig
from .decode import read_frames as read_frames
from .encoder import Encoder as Encoder
from .failures import DecodeError as DecodeError
from .frames import Frames as Frames
from .frames import segment_middles as segment_middles
from .pipeline import extract as extract
