"""Thin helpers for the cervical screening notebooks: one folder for each stage of the study."""

import warnings

__version__ = "0.1.0"

# What imports of fastai and captum say of other libraries: nothing a reader can act on. By message
# and module alone; every other warning is shown.
warnings.filterwarnings("ignore", "`torch.jit.script", module=r"torch\.jit")
warnings.filterwarnings("ignore", "IProgress not found", module="tqdm")
