"""The layers that networks are made of: linear layers and MLPs over one backend of `ivlite.ops`."""


class Linear:
    """y = W x + b."""

    def __init__(self, ops, weight, bias=None):
        self.ops, self.weight, self.bias = ops, weight, bias

    def __call__(self, x, into=None):
        return self.ops.linear(x, self.weight, self.bias, into)


class Mlp:
    """down(activation(up(x))), with two Linear."""

    def __init__(self, up, activation, down):
        self.up, self.activation, self.down = up, activation, down

    def __call__(self, x, into=None):
        up, down = ((half.weight, half.bias) for half in (self.up, self.down))
        return self.up.ops.mlp(x, up, self.activation, down, into)


class SplitMlp:
    """A SwiGLU MLP whose gate and up matrices have different formats."""

    def __init__(self, gate, up, down):
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, x, into=None):
        ops = self.down.ops
        return self.down(ops.silu_mul(ops.concat([self.gate(x), self.up(x)])), into)
