"""Starts a program on several machines: over ssh, under Slurm, on Kubernetes; and writes an image's Dockerfile.

Nothing here imports Ray: its command, ``ray``, is called on the machines, and the program finds the cluster by
``runtime_env.address``.
"""
