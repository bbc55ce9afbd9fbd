"""The base methods' losses written out in float64, row by row; they share nothing with the package but the heads."""

import math

import torch


def cosine_of(x, y):
    return float(x @ y / (x.norm() * y.norm()))


def mocov3_by_definition(method, student, momentum):
    q = [method.predictor(method.projector(x)) for x in student]
    k = [method.momentum_projector(x) for x in momentum]
    tau, terms = method.config.temperature, []
    for v in range(2):
        for u in range(len(q)):
            if u == v:
                continue
            for i in range(len(q[u])):
                s = torch.tensor([cosine_of(q[u][i], key) for key in k[v]], dtype=torch.float64) / tau
                terms.append(2 * tau * float(torch.logsumexp(s, 0) - s[i]))
    return 2 * sum(terms) / len(terms)


def dino_by_definition(method, student, momentum, tau_t=0.06):
    def head(module, x):
        h = module.layers(x)
        h = h / h.norm(dim=1, keepdim=True)
        gain, direction = module.last_layer.parameters()
        return h @ (gain * direction / direction.norm(dim=1, keepdim=True)).T

    s = [head(method.head, x) for x in student]
    t = [head(method.momentum_head, x) for x in momentum]
    terms = []
    for v in range(2):
        for u in range(len(s)):
            if u == v:
                continue
            p = torch.exp((t[v] - method.loss.center) / tau_t)
            q = torch.exp(s[u] / 0.1)
            p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
            terms.append(-(p * q.log()).sum(1).mean())
    return sum(terms) / len(terms)


def barlow_by_definition(z1, z2):
    def standard(z):
        return (z - z.mean(0)) / torch.sqrt(z.var(0, unbiased=False) + 1e-5)

    c = standard(z1).T @ standard(z2) / len(z1)
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            total += (c[i, j] - 1) ** 2 if i == j else 0.0051 * c[i, j] ** 2
    return total


def simclr_by_definition(z1, z2):
    z, total = torch.cat([z1, z2]), 0.0
    for i in range(len(z)):
        s = [cosine_of(z[i], other) / 0.1 for other in z]
        own = s[(i + len(z1)) % len(z)]
        total += math.log(sum(math.exp(s[j] - own) for j in range(len(z)) if j != i))
    return total / len(z)


def vicreg_by_definition(z1, z2):
    total = 25 * ((z1 - z2) ** 2).mean()
    for z in (z1, z2):
        c = torch.cov(z.T)
        total = total + 25 * (1 - (c.diagonal() + 1e-4).sqrt()).clamp(min=0).mean() / 2
        total = total + (c.pow(2).sum() - c.diagonal().pow(2).sum()) / len(c)
    return total


def of_pairs(projector, definition):
    def whole(method, student, momentum):
        z = [getattr(method, projector)(x) for x in student]
        terms = [definition(z[u], z[v]) for u in range(2) for v in range(u + 1, len(z))]
        return sum(terms) / len(terms)

    return whole


def simsiam_by_definition(method, student, momentum):
    z = [method.projector(x) for x in student]
    p = [method.predictor(x) for x in z]
    terms = [-cosine_of(p[u][i], z[v][i]) for v in range(2) for u in range(len(z)) if u != v for i in range(len(z[0]))]
    return sum(terms) / len(terms)


def byol_by_definition(method, student, momentum):
    def head(layers, x):
        """Linear, batch norm over the images, ReLU, linear: the last with a bias and no norm."""
        first, norm, _, last = layers
        h = x @ first.weight.T
        h = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-5) * norm.weight + norm.bias
        return h.clamp(min=0) @ last.weight.T + last.bias

    p = [head(method.predictor, head(method.projector, x)) for x in student]
    z = [head(method.momentum_projector, x) for x in momentum]
    terms = []
    for v in range(2):
        for u in range(len(p)):
            if u != v:
                terms += [2 - 2 * cosine_of(p[u][i], z[v][i]) for i in range(len(p[u]))]
    return sum(terms) / len(terms)


DEFINITIONS = {
    "mocov3": mocov3_by_definition,
    "dino": dino_by_definition,
    "barlow_twins": of_pairs("projector", barlow_by_definition),
    "simclr": of_pairs("projector", simclr_by_definition),
    "vicreg": of_pairs("expander", vicreg_by_definition),
    "simsiam": simsiam_by_definition,
    "byol": byol_by_definition,
}
