from .addons import ser_loss as ser_loss
from .api import evaluate as evaluate
from .api import pretrain as pretrain
from .backbones import create_backbone as create_backbone
from .errors import UserError as UserError
from .export import load_backbone as load_backbone
from .heads import patch_projector as patch_projector
from .losses import patch_ntxent as patch_ntxent
from .poses import Pose as Pose
from .poses import sample_pose_pair as sample_pose_pair
from .poses import transport as transport
from .testing import assert_equivariant as assert_equivariant
from .testing import assert_same_on_ranks as assert_same_on_ranks
from .testing import assert_trains as assert_trains

__version__: str
