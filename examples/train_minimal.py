"""The whole of training on one page: ResNet-20 on CIFAR-10, or on drawn images if CIFAR-10 is unavailable.

    python examples/train_minimal.py

examples/train_cifar.py adds settings, checkpoints, reports and a GPU.
"""

import minires as mr
import minires.functional as F
from minires import data, models, optim

EPOCHS = 5
mr.manual_seed(0)

dataset = data.load("auto")
options = {"batch_size": 128, "mean": dataset.mean, "std": dataset.std}
train_batches = data.Loader(dataset.train_images, dataset.train_labels, train=True, **options)
test_batches = data.Loader(dataset.test_images, dataset.test_labels, train=False, **options)

model = models.resnet20(dataset.num_classes)
optimizer = optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
schedule = optim.schedules.one_cycle(lr=0.2, total_steps=EPOCHS * len(train_batches))

for epoch in range(EPOCHS):
    for x, y in train_batches.epoch(epoch):  # x (128,32,32,3), y (128,)
        loss = F.cross_entropy(model(mr.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = schedule(optimizer.steps)
        optimizer.step()

    with mr.no_grad(), model.evaluating():
        right = sum((model(mr.Tensor(x)).data.argmax(axis=1) == y).sum() for x, y in test_batches.epoch(0))
    accuracy = 100 * right / len(dataset.test_labels)
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {accuracy:.2f} % ({dataset.name})", flush=True)
