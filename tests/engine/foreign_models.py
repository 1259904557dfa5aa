"""Model files around networks that nobody wrote for this project: torchvision's, Hugging Face's, and common designs.

Each is small, random, and has a few batches of random training data, so that a technique runs on it in seconds.
`ZOO` maps a name to the text of its model file.
"""

IMAGES = """
import torch
from torch import nn

def example_input(batch_size):
    return torch.randn(batch_size, 3, 64, 64, generator=torch.Generator().manual_seed(batch_size))

def train_data():
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (4, 8), generator=random)
    return [(torch.randn(8, 3, 64, 64, generator=random), some) for some in labels]
"""

TOKENS = """
import torch
from torch import nn

def tokens(count, seed):
    return torch.randint(0, 100, (count, 12), generator=torch.Generator().manual_seed(seed))

def example_input(batch_size):
    return {"input_ids": tokens(batch_size, batch_size)}
"""

TEXT_LABELS = """
def train_data():
    return [({"input_ids": tokens(8, seed)}, tokens(8, seed)[:, 0] % 3) for seed in range(5)]
"""

TOKEN_LABELS = """
def train_data():
    return [({"input_ids": tokens(8, seed)}, tokens(8, seed) % 5) for seed in range(5)]
"""

TORCHVISION = """
try:
    import torchvision
except ModuleNotFoundError:
    torchvision = None
except RuntimeError:  # compiled for another build of torch: it looks for operators that no network here uses
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
"""
"""Hugging Face's package imports it, too, where it is installed."""

TORCHVISION_MODEL = """
def load_model():
    torch.manual_seed(0)
    network = torchvision.models.%s.eval()
    for layer in network.modules():  # statistics as training leaves them: no two channels alike
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
    return network
"""

HUGGING_FACE = """
import transformers

def load_model():
    torch.manual_seed(0)
    return transformers.%s
"""

OWN = """
def load_model():
    torch.manual_seed(0)
    return Net().eval()
"""

TEXT_SIZES = "hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=100"

BERT = f"BertForSequenceClassification(transformers.BertConfig({TEXT_SIZES}, num_labels=3)).eval()"

VIT = """ViTForImageClassification(transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=64,
        patch_size=16, num_labels=10)).eval()"""

GPT2 = """GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=32, use_cache=False)).eval()"""

LLAMA = """LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=100, use_cache=False)).eval()"""

TAGGER = """
class Net(nn.Module):
    '''A word tagger: embedding, bidirectional LSTM, a tag for every word.'''

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 24, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.hidden = nn.Linear(48, 40)
        self.tags = nn.Linear(40, 5)

    def forward(self, input_ids):
        states, _ = self.lstm(self.words(input_ids))
        return self.tags(torch.relu(self.hidden(states)))
"""

UNET = """
def double(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )

class Net(nn.Module):
    '''Encoder, decoder with transposed convolutions, short cuts by concatenation: a class for every pixel.'''

    def __init__(self, widths=(16, 32, 64), classes=4):
        super().__init__()
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))
        self.join = nn.ModuleList(double(2 * a, a) for a in widths[:-1])
        self.classes = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for level in range(len(self.up) - 1, -1, -1):
            x = self.join[level](torch.cat([kept[level], self.up[level](x)], dim=1))
        return self.classes(x)

def train_data():
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (4, 4, 32, 32), generator=random)
    return [(torch.randn(4, 3, 32, 32, generator=random), some) for some in labels]
"""

DENSE = """
class Layer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], dim=1)

class Net(nn.Module):
    '''Every layer reads what all before it made, as in DenseNet.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first = nn.Sequential(*(Layer(16 + 8 * i, 8) for i in range(3)))
        self.between = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 24, 1), nn.AvgPool2d(2))
        self.second = nn.Sequential(*(Layer(24 + 8 * i, 8) for i in range(3)))
        self.norm, self.head = nn.BatchNorm2d(48), nn.Linear(48, 10)

    def forward(self, x):
        x = self.second(self.between(self.first(self.stem(x))))
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))
"""

GROUPED = """
class Net(nn.Module):
    '''A grouped convolution beside a depthwise one.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.pointwise = nn.Conv2d(32, 48, 1)
        self.grouped = nn.Conv2d(48, 48, 3, padding=1, groups=4)
        self.last = nn.Conv2d(48, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.pointwise(self.depthwise(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.last(torch.relu(self.grouped(x)))).mean((2, 3)))
"""

INLINE = """
class Block(nn.Module):
    '''Attention and perceptron written out in one module, as in many a tutorial.'''

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.num_heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(torch.relu(self.fc1(self.norm2(x))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.blocks = nn.Embedding(100, 32), nn.Sequential(Block(), Block())
        self.tags = nn.Linear(32, 5)

    def forward(self, input_ids):
        return self.tags(self.blocks(self.words(input_ids)))
"""

TORCHVISION_VIT = """VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=256, num_classes=10)"""

ZOO = {
    "torchvision-resnet18": IMAGES + TORCHVISION + TORCHVISION_MODEL % "resnet18(num_classes=10)",
    "torchvision-mobilenet": IMAGES + TORCHVISION + TORCHVISION_MODEL % "mobilenet_v3_small(num_classes=10)",
    "torchvision-vit": IMAGES + TORCHVISION + TORCHVISION_MODEL % TORCHVISION_VIT,
    "transformers-bert": TOKENS + TEXT_LABELS + TORCHVISION + HUGGING_FACE % BERT,
    "transformers-vit": IMAGES + TORCHVISION + HUGGING_FACE % VIT,
    "transformers-gpt2": TOKENS + TOKEN_LABELS.replace("% 5", "") + TORCHVISION + HUGGING_FACE % GPT2,
    "transformers-llama": TOKENS + TOKEN_LABELS.replace("% 5", "") + TORCHVISION + HUGGING_FACE % LLAMA,
    "inline": TOKENS + TOKEN_LABELS + INLINE + OWN,
    "tagger": TOKENS + TOKEN_LABELS + TAGGER + OWN,
    "unet": IMAGES.replace("64, 64", "32, 32").partition("def train_data")[0] + UNET + OWN,
    "dense": IMAGES + DENSE + OWN,
    "grouped": IMAGES + GROUPED + OWN,
}
"""Name → model file. A name that starts with a package's needs that package."""
