"""The names of other libraries, on top of this one: for code that was written for them.

Each is imported on its own: `import invtorch.compat.memcnn as memcnn`.
"""
