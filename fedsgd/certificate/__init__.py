"""Certificates: a compressor put through the law suite, and measured on vectors that anybody can make again."""

from fedsgd.certificate.base import Certificate, Verdict
from fedsgd.certificate.make import certify, certify_all

__all__ = ["Certificate", "Verdict", "certify", "certify_all"]
