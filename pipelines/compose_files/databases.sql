-- Run once, when PostgreSQL's folder is made; the controller's own database is there by then.
CREATE DATABASE mlflow;
