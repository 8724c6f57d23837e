# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ResNet-101 on CIFAR-10, in six steps
#
# Transfer learning: a network that has learnt to tell the thousand classes of ImageNet apart gets a new last layer, and
# learns the ten classes of CIFAR-10. The six steps are those of the usual PyTorch example. Each step quotes the lines
# that PyTorch takes, and then takes the lines of minires. minires needs no PyTorch: every operation is NumPy on a CPU,
# or CuPy on an NVIDIA GPU, in source code that you can read.
#
# What differs everywhere: images are `(N, H, W, C)`, channels last; arrays are NumPy's or CuPy's, and
# `mr.Tensor(array)` lets a gradient flow through one; `axis` is NumPy's name for `dim`.
#
# *On Colab* choose a runtime with a GPU, where CuPy is installed already. The next cell installs minires from the
# checkout that this notebook lies in.

# %%
import importlib.util

if importlib.util.find_spec("minires") is None:
    # %pip install -q ..
    pass

# %%
import time

import matplotlib.pyplot as plt

import minires as mr
import minires.functional as F
from minires import data, models, nn, optim

mr.manual_seed(0)
mr.info()["versions"]

# %% [markdown]
# The whole of CIFAR-10 at 224x224 is work for a GPU: on two CPU cores one epoch takes hours. Without a GPU this
# notebook goes on small, with fewer pictures of 64x64.

# %% tags=["parameters"]
data_dir = "../data"
device = "cuda" if mr.cuda.is_available() else "cpu"
image_size, train_size, test_size, num_epochs = (224, 50_000, 10_000, 5) if device == "cuda" else (64, 2_000, 500, 3)
print(f"on {device}: {train_size:,} training images of {image_size}x{image_size}, {num_epochs} epochs")
if device == "cpu":
    print(f"(no GPU: {mr.cuda.why_not()})")

# %% [markdown]
# ## Step 1: load CIFAR-10
#
# ```python
# train_dataset = torchvision.datasets.CIFAR10(root='./data', train=True, download=True, transform=transform_train)
# test_dataset = torchvision.datasets.CIFAR10(root='./data', train=False, download=True, transform=transform_test)
# ```
#
# `"auto"` downloads CIFAR-10 once. Without a network it warns, and takes Shapes-10, ten classes of drawn pictures.

# %%
dataset = data.load("auto", data_dir)
dataset = dataset.subset(min(train_size, len(dataset.train_images)))
dataset

# %%
figure, axes = plt.subplots(2, 8, figsize=(10, 2.8))
for picture, label, ax in zip(dataset.train_images, dataset.train_labels, axes.flat):
    ax.imshow(picture)
    ax.set_title(dataset.classes[label], fontsize=8)
    ax.axis("off")

# %% [markdown]
# ## Step 2: preprocess: resize, flip, normalise
#
# ```python
# transform_train = transforms.Compose([
#     transforms.Resize(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
#     transforms.Normalize(mean=[0.4914, 0.4822, 0.4465], std=[0.247, 0.243, 0.261])
# ])
# train_loader = torch.utils.data.DataLoader(train_dataset, batch_size=32, shuffle=True)
# test_loader = torch.utils.data.DataLoader(test_dataset, batch_size=32, shuffle=False)
# ```
#
# A `Loader` does all of it: with `train=True` it shuffles and flips, `padding=0` leaves the random crops out, and each
# channel is normalised by the data set's `mean` and `std`.

# %%
options = {"mean": dataset.mean, "std": dataset.std, "image_size": image_size, "padding": 0, "device": device}
train_loader = data.Loader(dataset.train_images, dataset.train_labels, 32, train=True, **options)
test_loader = data.Loader(dataset.test_images[:test_size], dataset.test_labels[:test_size], 32, train=False, **options)
train_loader

# %% [markdown]
# ## Step 3: a pretrained ResNet-101 with a new last layer
#
# ```python
# model = resnet101(pretrained=True)
# model.fc = nn.Linear(model.fc.in_features, 10)
# model = model.to(device)
# ```
#
# `weights="imagenet"` is torchvision's own file, downloaded once and checked. This is the network, stage by stage. Each
# of its 33 blocks computes `H(x) = F(x) + x`. Without the file, ResNet-18 takes its place here.

# %%
models.stages(models.resnet101())

# %%
try:
    model = models.resnet101(weights="imagenet")
    model.fc = nn.Linear(model.fc.in_features, dataset.num_classes)
except mr.WeightsError as error:
    print(f"There are no pretrained weights: {error}")
    print("Going on with ResNet-18 from random weights: small enough to learn something here.")
    model = models.resnet18(dataset.num_classes)
model.to(device)
mr.summary(model, (image_size, image_size, 3)).total

# %% [markdown]
# ## Step 4: loss function and optimiser
#
# ```python
# criterion = nn.CrossEntropyLoss()
# optimizer = optim.Adam(model.parameters(), lr=0.001)
# ```

# %%
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=0.001)
optimizer

# %% [markdown]
# ## Step 5: train
#
# ```python
# for epoch in range(num_epochs):
#     model.train()
#     running_loss = 0.0
#     for inputs, labels in train_loader:
#         inputs, labels = inputs.to(device), labels.to(device)
#         optimizer.zero_grad()
#         outputs = model(inputs)
#         loss = criterion(outputs, labels)
#         loss.backward()
#         optimizer.step()
#         running_loss += loss.item()
#     print(f"Epoch {epoch + 1}/{num_epochs}, Loss: {running_loss / len(train_loader):.4f}")
# ```
#
# The lines of the loop are the same, but for `mr.Tensor(inputs)`. The loader has put the batch on the device already.

# %%
losses = []
for epoch in range(num_epochs):
    model.train()
    running_loss, start = 0.0, time.monotonic()

    for inputs, labels in train_loader:
        optimizer.zero_grad()

        outputs = model(mr.Tensor(inputs))
        loss = criterion(outputs, labels)

        loss.backward()
        optimizer.step()

        running_loss += loss.item()

    losses.append(running_loss / len(train_loader))
    print(f"Epoch {epoch + 1}/{num_epochs}, Loss: {losses[-1]:.4f}, {time.monotonic() - start:.0f} s")

# %%
plt.figure(figsize=(5, 2.5))
plt.plot(range(1, num_epochs + 1), losses, marker="o")
plt.xticks(range(1, num_epochs + 1))
plt.xlabel("epoch")
plt.ylabel("training loss")
plt.show()
# %% [markdown]
# ## Step 6: evaluate
#
# ```python
# model.eval()
# correct = total = 0
# with torch.no_grad():
#     for inputs, labels in test_loader:
#         outputs = model(inputs.to(device))
#         _, predicted = torch.max(outputs, 1)
#         total += labels.size(0)
#         correct += (predicted == labels.to(device)).sum().item()
# print(f"Test Accuracy: {100 * correct / total:.2f}%")
# ```

# %%
model.eval()
correct = total = 0
with mr.no_grad():
    for inputs, labels in test_loader:
        outputs = model(mr.Tensor(inputs))
        predicted = outputs.argmax(axis=1)
        total += len(labels)
        correct += (predicted == labels).sum().item()
print(f"Test Accuracy: {100 * correct / total:.2f}% ({dataset.name}, {total:,} images)")

# %% [markdown]
# What the network says of the first test images, and how sure it is:

# %%
with mr.no_grad():
    inputs, labels = test_loader.batch(0, 0)
    probabilities = F.softmax(model(mr.Tensor(inputs))).numpy()

figure, axes = plt.subplots(2, 8, figsize=(10, 3))
for picture, label, p, ax in zip(dataset.test_images, dataset.test_labels, probabilities, axes.flat):
    ax.imshow(picture)
    right = p.argmax() == label
    ax.set_title(f"{dataset.classes[p.argmax()]}, {p.max():.0%}", fontsize=8, color="black" if right else "red")
    ax.axis("off")

# %% [markdown]
# The weights, with what `minires predict` has to know of the pictures. In a terminal:
# `minires predict --weights six_steps.safetensors photo.jpg`.

# %%
mr.save_weights(model, "six_steps.safetensors", notes=dataset.notes(image_size))

# %% [markdown]
# ## Where to go on
#
# - `examples/finetune_cifar.py` is this recipe as a program, with checkpoints, `--resume` and a report. `--freeze`
#   trains the new layer alone, in minutes on a CPU.
# - `examples/train_cifar.py` trains any ResNet from random weights.
# - README, "How to read this": from the array to the weight update, file by file.
