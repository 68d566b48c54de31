"""Token mixers behind one interface, which knows torch and kernels but not data, training or suites."""

from mixers.interface import Cost, Mixer, MixerConfig, State
from mixers.registry import build_mixer, register_mixer

__all__ = ["Cost", "Mixer", "MixerConfig", "State", "build_mixer", "register_mixer"]
