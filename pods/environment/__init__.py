"""The environment of a pod: what is to be installed (`spec`), what is carried there, how it is made sure of (`ensure`).

The building itself happens on the pod, in a process of its own (`pods.remote.envbuild`).
"""
