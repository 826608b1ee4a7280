-- Run once by the image of PostgreSQL, when its volume is empty. The database prefect is made by POSTGRES_DB.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_accounts;
